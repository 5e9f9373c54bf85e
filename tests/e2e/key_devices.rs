//! The key of the client certificate in a token (SoftHSM) and in a TPM (swtpm): no file holds it, all
//! else is as with a file. Needs both programs, and an agent that was built with both features.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jtnt_hub_mock::{Hub, Kind, OldCertificates, Route};
use serde_json::json;
use tokio::process::Command;

use crate::{
    site::{Site, exec, rules},
    support::{Home, daemon::Daemon, eventually, put, run},
};

const PIN: &str = "2468";

/// A token in the agent's folder, and where its objects are.
struct Token {
    store: String,
    pin: PathBuf,
    objects: PathBuf,
}

impl Token {
    async fn new(home: &mut Home) -> Self {
        let (dir, conf) = (home.path().join("tokens"), home.path().join("softhsm2.conf"));
        fs::create_dir(&dir).unwrap();
        put(&conf, format!("directories.tokendir = {}\n", dir.display()).as_bytes()).unwrap();
        let mut init = Command::new("softhsm2-util");
        init.args([
            "--init-token",
            "--free",
            "--label",
            "a token",
            "--pin",
            PIN,
            "--so-pin",
            "1357",
        ]);
        run(init.env("SOFTHSM2_CONF", &conf)).await.unwrap().exits(0).unwrap();
        home.env.push(("SOFTHSM2_CONF", conf));
        let pin = home.path().join("pin");
        write_pin(&pin, PIN);
        let module = "/usr/lib/softhsm/libsofthsm2.so";
        let pin_source = pin.display();
        let store =
            format!("pkcs11:token=a%20token?module-path={module}&pin-source=file:{pin_source}");
        Self { store, pin, objects: fs::read_dir(dir).unwrap().next().unwrap().unwrap().path() }
    }

    /// Each a private and a public object.
    fn keys(&self) -> usize {
        let files = fs::read_dir(&self.objects).unwrap().map(|file| file.unwrap().file_name());
        let objects = files.filter(|name| {
            name.to_str().is_some_and(|n| n.ends_with(".object") && n != "token.object")
        });
        objects.count() / 2
    }
}

fn write_pin(path: &Path, pin: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    put(path, format!("{pin}\n").as_bytes()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A TPM of this state behind a socket.
async fn tpm(home: &Home, state: &str) -> (Daemon, String) {
    let (dir, socket) = (home.path().join(state), home.path().join("tpm.sock"));
    fs::create_dir_all(&dir).unwrap();
    let mut swtpm = Command::new("swtpm");
    swtpm.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"]);
    swtpm.arg("--tpmstate").arg(format!("dir={}", dir.display()));
    swtpm.arg("--server").arg(format!("type=unixio,path={}", socket.display()));
    let daemon = Daemon::spawn("swtpm", &mut swtpm).unwrap();
    let there = eventually("the TPM listens", async || {
        std::os::unix::net::UnixStream::connect(&socket).map_err(|e| e.to_string())
    });
    there.await.unwrap();
    (daemon, format!("tpm2:{}", socket.display()))
}

async fn enrolled(site: &mut Site, store: &str) {
    let token = site.token_file(&site.hub.token().await.unwrap());
    let ran = site.enrol_with(&token, &site.hub.root_file(), &["--key-store", store]).await;
    ran.exits(0).unwrap();
    site.id = site.hub.agents().pop().unwrap().agent_id;
    site.publish(1, &rules(&site.home)).await;
    site.hub.set_old_certificates(OldCertificates::OldDies);
}

/// What `cert check --prove` ends with, and says.
async fn proof(site: &Site) -> (Option<i32>, String) {
    let ran = site.home.ctl(&["cert", "check", "--prove"]).await.unwrap();
    (ran.code, format!("{}{}", ran.stdout, ran.stderr))
}

fn key_file(site: &Site) -> String {
    fs::read_to_string(site.home.data().join("certs/client.key")).unwrap()
}

#[tokio::test]
#[ignore = "needs softhsm2 and the feature pkcs11: see .ci/run"]
async fn a_token_keeps_the_key_and_lets_go_of_old_ones() {
    let mut site = Site::new(Hub::builder()).await;
    let token = Token::new(&mut site.home).await;
    enrolled(&mut site, &token.store).await;
    assert_eq!(token.keys(), 1);
    assert!(key_file(&site).starts_with("pkcs11:") && !key_file(&site).contains("PRIVATE"));
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let shown = site.home.asked(&["cert", "check", "--prove"]).await.unwrap();
    let told = (&shown["key_store"], &shown["key_matches"]);
    assert_eq!(told, (&json!(token.store), &json!(true)));
    assert_eq!(shown["proof"]["seen_serial"], shown["serial"]);
    // The one in place and the one before are kept; what came before those is gone.
    for kept in [2, 2, 2] {
        site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
        assert_eq!(token.keys(), kept);
    }
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");

    // A kill leaves the key that was just made; the next start goes on with it. What nobody goes on
    // with goes once another renewal is through.
    site.hub.set_fault(Route::Renew, Kind::Cut, Some(1)).unwrap();
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(1).unwrap();
    assert_eq!(token.keys(), 3);
    crate::crash::kill(agent).await;
    let agent = site.home.start().await.unwrap();
    agent.says(0, "the client cert was renewed").await.unwrap();
    let gone = eventually("the old key goes", async || match token.keys() {
        2 => Ok(()),
        more => Err(more.to_string()),
    });
    gone.await.unwrap();
    fs::remove_file(site.home.data().join("certs/client.key.backup")).unwrap();
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    assert_eq!(token.keys(), 2);

    // Without its PIN the token does nothing, and a wrong one is not tried twice.
    write_pin(&token.pin, "1111");
    let (code, said) = proof(&site).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("CLIENT_KEY") && said.contains("PIN"), "{said}");
    let told = site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(1).unwrap();
    assert!(told.stderr.contains("[KEY]"), "{}", told.stderr);
    assert!(told.stderr.contains("not tried again"), "{}", told.stderr);
    fs::set_permissions(&token.pin, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let told = site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(1).unwrap();
    assert!(told.stderr.contains("chmod 600"), "{}", told.stderr);
    write_pin(&token.pin, PIN);
    assert_eq!(proof(&site).await.0, Some(0));
    assert_eq!(token.keys(), 2, "what failed left nothing behind");
    agent.stop().await.unwrap();

    // A file is a store, too; the key in the token is kept as long as there is a way back to it.
    site.home.configure(&json!({"key_store": "file"})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    assert!(key_file(&site).contains("PRIVATE KEY"));
    assert_eq!(token.keys(), 1);
    site.hub.set_old_certificates(OldCertificates::OldStays);
    agent.stop().await.unwrap();
    site.home.agent(&["unenroll"]).await.unwrap().exits(0).unwrap();
    assert_eq!(token.keys(), 0);
}

#[tokio::test]
#[ignore = "needs softhsm2 and the feature pkcs11: see .ci/run"]
async fn a_key_in_use_is_never_taken_for_an_old_one() {
    let mut site = Site::new(Hub::builder()).await;
    let token = Token::new(&mut site.home).await;
    enrolled(&mut site, &token.store).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();

    // The same token by another name, in an enrolment that fails and in a renewal: what is in use stays.
    let other = token.store.replace("a%20token?", "a%20token;manufacturer=SoftHSM%20project?");
    let used = site.token_file("jtnt_0000000000000000000000000000000000000000");
    let more = ["--force", "--key-store", &other];
    site.enrol_with(&used, &site.hub.root_file(), &more).await.exits(1).unwrap();
    assert_eq!((proof(&site).await.0, token.keys()), (Some(0), 2));
    site.home.configure(&json!({ "key_store": other })).unwrap();
    site.home.ctl(&["reload"]).await.unwrap().exits(0).unwrap();
    for _ in 0..2 {
        site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
        assert_eq!((proof(&site).await.0, token.keys()), (Some(0), 2));
        assert!(key_file(&site).contains("manufacturer="), "{}", key_file(&site));
    }
    // An enrolment of an agent that runs is taken up with its store.
    let again = site.token_file(&site.hub.token().await.unwrap());
    let more = ["--force", "--key-store", &token.store];
    site.enrol_with(&again, &site.hub.root_file(), &more).await.exits(0).unwrap();
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    assert_eq!((proof(&site).await.0, token.keys()), (Some(0), 2));
    assert!(!key_file(&site).contains("manufacturer="), "{}", key_file(&site));
    // Where a file cannot be read, nothing is known to be old.
    let backup = site.home.data().join("certs/client.key.backup");
    put(&backup, b"pkcs11:nonsense\n").unwrap();
    site.hub.set_fault(Route::Renew, Kind::InternalError, Some(1)).unwrap();
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(1).unwrap();
    assert_eq!((proof(&site).await.0, token.keys()), (Some(0), 3));
    fs::remove_file(&backup).unwrap();
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    assert_eq!((proof(&site).await.0, token.keys()), (Some(0), 2));
    agent.stop().await.unwrap();
}

#[tokio::test]
#[ignore = "needs softhsm2 and the feature pkcs11: see .ci/run"]
async fn an_enrolment_that_fails_leaves_no_key_in_the_token() {
    let mut site = Site::new(Hub::builder()).await;
    let token = Token::new(&mut site.home).await;
    let used = site.token_file("jtnt_0000000000000000000000000000000000000000");
    let root = site.hub.root_file();
    let more = ["--key-store", &token.store];
    site.enrol_with(&used, &root, &more).await.exits(1).unwrap();
    assert_eq!(token.keys(), 0);
    for (store, why) in [
        (token.store.replace("a%20token", "another"), "no token is there"),
        (token.store.replace("libsofthsm2.so", "nothing.so"), "nothing.so"),
        ("tpm2:/dev/null".to_owned(), "the TPM makes no storage key"),
        ("tpm2:/nowhere".to_owned(), "no TPM at /nowhere"),
    ] {
        let token = site.token_file(&site.hub.token().await.unwrap());
        let more = ["--key-store", &store];
        let told = site.enrol_with(&token, &root, &more).await.exits(6).unwrap();
        assert!(told.stderr.contains("TLS_KEY") && told.stderr.contains(why), "{}", told.stderr);
    }
    assert!(!site.home.data().join("certs").exists());
}

#[tokio::test]
#[ignore = "needs swtpm and the feature tpm2: see .ci/run"]
async fn a_tpm_keeps_the_key_and_no_other_can_use_it() {
    let mut site = Site::new(Hub::builder()).await;
    let (daemon, store) = tpm(&site.home, "tpm").await;
    enrolled(&mut site, &store).await;
    assert!(key_file(&site).contains("BEGIN TSS2 PRIVATE KEY"));
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    let shown = site.home.asked(&["cert", "check", "--prove"]).await.unwrap();
    assert_eq!((&shown["key_store"], &shown["key_matches"]), (&json!(store), &json!(true)));
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");

    drop(daemon);
    fs::remove_file(site.home.path().join("tpm.sock")).ok();
    let (code, said) = proof(&site).await;
    assert!(code == Some(1) && said.contains("CLIENT_KEY"), "{said}");
    let other = tpm(&site.home, "other").await;
    let (code, said) = proof(&site).await;
    assert!(code == Some(1) && said.contains("does not take its key"), "{said}");
    drop(other);
    fs::remove_file(site.home.path().join("tpm.sock")).ok();
    let _daemon = tpm(&site.home, "tpm").await;
    assert_eq!(proof(&site).await.0, Some(0));
    agent.stop().await.unwrap();
}
