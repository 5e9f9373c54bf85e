//! `policy`: write, check, sign, publish.

use std::{fs, path::Path};

use jtnt_proto::{json, policy::Policy};
use serde_json::Value;

use super::{Desk, Verdict, args::PolicyCommand, lint, output::Output};
use crate::{
    clock,
    control::{CurrentPolicy, Version},
    error::{HubError, random},
    operator::Operator,
};

/// A document to start from: everything a newcomer has to decide is written out.
const TEMPLATE: &str = include_str!("policy-template.json");

pub(super) async fn run(desk: &Desk<'_>, command: PolicyCommand) -> Result<Verdict, HubError> {
    match command {
        PolicyCommand::Push { file } => push(desk, &file).await,
        PolicyCommand::Lint { file } => lint(&file, desk.output),
        PolicyCommand::Template => template(desk.output),
    }
}

async fn push(desk: &Desk<'_>, file: &Path) -> Result<Verdict, HubError> {
    let operator = desk.operator()?;
    let policy = read(file, Some(&operator))?;
    refuse_faults(file, &policy)?;
    let current: CurrentPolicy = desk.client.get("/control/v1/policy").await?;
    if policy.version <= current.version {
        let why = format!(
            "{}: version {} is not above the published {}; agents never go back. Write \"version\": {}",
            file.display(),
            policy.version,
            current.version,
            current.version + 1
        );
        return Err(HubError::refused("POLICY_VERSION", why));
    }
    let envelope = operator.sign_policy(&policy);
    let version: Version = desk.client.post("/control/v1/policy", &envelope).await?;
    desk.output.show(&version, || {
        format!(
            "policy version {} is published; agents have it by their next heartbeat, or by: \
             jtntctl policy refresh\n",
            version.version
        )
    })
}

pub(super) fn lint(file: &Path, output: &Output) -> Result<Verdict, HubError> {
    let policy = read(file, None)?;
    let faults = lint::faults(&policy, clock::now());
    let verdict = if faults.is_empty() { Verdict::Yes } else { Verdict::No };
    output.show(&serde_json::json!({ "faults": faults }), || {
        if faults.is_empty() {
            format!("{}: no fault found\n", file.display())
        } else {
            faults.iter().map(|f| format!("{}: {f}\n", file.display())).collect()
        }
    })?;
    Ok(verdict)
}

/// The template, valid for 30 days from now.
pub(super) fn template(output: &Output) -> Result<Verdict, HubError> {
    let expires = clock::shift(clock::now(), 30 * 86_400 - 3600);
    let expires = jiff::Timestamp::from_second(expires.as_second())
        .map_err(|e| HubError::damaged("clock", e))?;
    let text = TEMPLATE.replace("EXPIRES_AT", &expires.to_string());
    let value: Value = serde_json::from_str(&text).map_err(|e| HubError::damaged("template", e))?;
    output.show(&value, || text)
}

fn refuse_faults(file: &Path, policy: &Policy) -> Result<(), HubError> {
    let faults = lint::faults(policy, clock::now());
    if faults.is_empty() {
        return Ok(());
    }
    let why = format!("{}: {}", file.display(), faults.join("; "));
    Err(HubError::refused("POLICY_FAULTS", why))
}

/// Reads a document, filling in what the signer knows better. Without an operator, the audience
/// is filled with a name that no root has: it is only looked at.
fn read(file: &Path, operator: Option<&Operator>) -> Result<Policy, HubError> {
    let bytes = fs::read(file).map_err(HubError::file(file))?;
    let audience = operator.map(|o| serde_json::to_value(o.audience())).transpose();
    let audience = audience.map_err(|e| HubError::damaged("audience", e))?;
    let filled = [
        ("policy_id", Value::from(format!("policy-{}", hex::encode(random::<8>()?)))),
        ("issued_at", Value::from(clock::now().to_string())),
        ("audience", audience.unwrap_or_else(|| serde_json::json!({ "root_id": "unsigned" }))),
    ];
    json::from_slice_filled(&bytes, &filled)
        .map_err(|e| HubError::refused("POLICY_SHAPE", format!("{}: {e}", file.display())))
}

#[cfg(test)]
mod tests {
    use jtnt_proto::{
        bytes::Hash,
        policy::{Access, Effect},
    };

    use super::*;

    fn read_text(text: &str) -> Result<Policy, HubError> {
        let dir = tempfile::tempdir().map_err(|e| HubError::damaged("test", e))?;
        let file = dir.path().join("policy.json");
        crate::durable::replace(&file, text.as_bytes(), crate::durable::Access::Public)
            .map_err(HubError::file(&file))?;
        read(&file, None)
    }

    #[test]
    fn the_template_is_a_policy_without_fault_and_says_what_it_requires() {
        let expires = clock::shift(clock::now(), 86_400).to_string();
        let policy = read_text(&TEMPLATE.replace("EXPIRES_AT", &expires)).unwrap();
        assert_eq!(lint::faults(&policy, clock::now()), Vec::<String>::new());
        assert!(TEMPLATE.contains("\"require_enforcement\""));
        // One rule for each type of job: the README runs the script.
        assert_eq!(policy.script[0].sha256, Some(Hash::of(b"df -h /\n")));
        for access in [Access::Read, Access::Write] {
            assert!(
                policy
                    .file
                    .iter()
                    .any(|r| { r.effect == Effect::Allow && r.access.contains(&access) })
            );
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let said = read_text(r#"{"version":1,"expires_at":"2030-01-01T00:00:00Z","exce":[]}"#)
            .unwrap_err()
            .to_string();
        assert!(said.contains("exce"), "{said}");
    }

    #[test]
    fn a_broken_file_is_named_with_the_place_in_it() {
        let text = TEMPLATE.replace("EXPIRES_AT", "2030-01-01T00:00:00Z");
        let cut = text.split("\"script\"").next().unwrap();
        for (text, place) in [
            (text.replacen("\"effect\"", "\"efect\"", 1), "at line 8 column 28"),
            (text.replacen("\"any\",", "\"any\"", 1), "at line 7 column 3"),
            (format!("{cut}\n"), "at line 10 column 5"),
        ] {
            let said = read_text(&text).unwrap_err().to_string();
            assert!(said.contains("policy.json: ") && said.ends_with(place), "{said}");
        }
    }

    #[test]
    fn every_fault_is_found() {
        let policy = read_text(
            r#"{"version":0,"expires_at":"2020-01-01T00:00:00Z",
                "limits":{"pids":0},
                "exec":[{"id":"a","effect":"allow","path":"bin/x","args":[{"match":"a)|(b"}]}],
                "script":[{"id":"a","effect":"allow","interpreter":"/bin/sh"}]}"#,
        )
        .unwrap();
        let faults = lint::faults(&policy, clock::now()).join("\n");
        for part in [
            "version",
            "it expired at",
            "must be absolute",
            "rule a: id stands twice",
            "sha256 or signer",
            "limits.pids is not within 1",
            "rule a: pattern",
        ] {
            assert!(faults.contains(part), "{part} in {faults}");
        }
    }
}
