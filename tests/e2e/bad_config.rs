//! Configurations that are wrong: every command names file, line, column and what is meant, and
//! touches nothing.

use std::fs;

use crate::support::{Home, put};

/// What stands in the file, and what is said behind its name.
const WRONG: [(&str, &str); 7] = [
    (
        "{\n  \"hub_ulr\": \"https://hub\"\n}",
        ":2:3: unknown setting \"hub_ulr\"; did you mean \"hub_url\"?",
    ),
    (
        "{\n  \"heartbeat_interval_seconds\": \"30\"\n}",
        ":2:33: heartbeat_interval_seconds: expected a whole number from 1 to 120, found the text \
         \"30\"",
    ),
    (
        "{\"heartbeat_interval_seconds\": 121}",
        ":1:32: heartbeat_interval_seconds: expected a whole number from 1 to 120, found the \
         number 121",
    ),
    ("{\"log_level\": \"info\",}", ":1:22: not JSON: trailing comma"),
    ("{\"log_level\": \"info\"", "not JSON: "),
    ("{\"metrics_listen\": \"0.0.0.0:9090\"}", ":1:20: metrics_listen: "),
    ("{\"labels\": {}, \"labels\": {}}", ":1:16: \"labels\" stands twice"),
];

#[tokio::test]
async fn a_wrong_configuration_is_named_with_its_place_and_nothing_starts() {
    let home = Home::new().unwrap();
    let listing = || {
        let names = fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let before = listing();
    let shown = home.agent(&["config", "check"]).await.unwrap().exits(0).unwrap();
    assert_eq!(shown.stderr, "");
    for (text, words) in WRONG {
        put(&home.config(), text.as_bytes()).unwrap();
        let place = format!("{}{words}", home.config().display());
        let place = if words.starts_with(':') { place } else { words.to_owned() };
        for (args, code) in [
            (&["config", "check"][..], 1),
            (&["config", "show"], 2),
            (&["run"], 2),
            (&["status"], 2),
        ] {
            let ran = home.agent(args).await.unwrap().exits(code).unwrap();
            let said = format!("{}{}", ran.stdout, ran.stderr);
            assert!(said.contains(&place), "{args:?}: no {place:?} in {said}");
        }
        assert_eq!(fs::read_to_string(home.config()).unwrap(), text);
        assert_eq!(listing(), before, "{text}");
    }
}

#[tokio::test]
async fn a_single_setting_is_enough_and_the_rest_is_shown() {
    let home = Home::new().unwrap();
    put(&home.config(), b"{\"audit_retention_days\": 90}").unwrap();
    home.agent(&["config", "check"]).await.unwrap().exits(0).unwrap();
    let shown = home.agent(&["config", "show"]).await.unwrap().exits(0).unwrap();
    for part in ["audit_retention_days", "90", "/var/lib/jtnt-agent", "127.0.0.1:9090"] {
        assert!(shown.stdout.contains(part), "no {part} in {}", shown.stdout);
    }
    // A file that somebody named must be there, or a slip of the pen would mean the system's own.
    fs::remove_file(home.config()).unwrap();
    for command in [&["config", "show"][..], &["run"]] {
        let ran = home.agent(command).await.unwrap().exits(6).unwrap();
        assert!(ran.stderr.contains("No such file"), "{}", ran.stderr);
    }
}
