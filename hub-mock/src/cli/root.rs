//! `root` and `sign`: the root of roles, and signatures over anything at all.

use std::fs;

use jtnt_proto::envelope::PayloadType;

use super::{
    Desk, Verdict,
    args::{RootCommand, Sign},
    output::table,
};
use crate::{
    control::Version,
    error::HubError,
    operator::{Operator, Role},
};

pub(super) async fn run(desk: &Desk<'_>, command: RootCommand) -> Result<Verdict, HubError> {
    match command {
        RootCommand::Show => show(desk, &desk.operator()?),
        RootCommand::Rotate { roles } => rotate(desk, &roles).await,
    }
}

fn show(desk: &Desk<'_>, operator: &Operator) -> Result<Verdict, HubError> {
    let root = operator.root();
    desk.output.show(root, || {
        let rows: Vec<_> = root
            .roles
            .each()
            .into_iter()
            .flat_map(|(name, role)| {
                let threshold = role.threshold.to_string();
                role.keyids
                    .iter()
                    .map(move |id| vec![name.to_owned(), threshold.clone(), id.to_string()])
            })
            .collect();
        format!(
            "root     {}\nversion  {}\nissued   {}\nexpires  {}\n\n{}",
            root.root_id,
            root.version,
            root.issued_at,
            root.expires_at,
            table(&["ROLE", "NEEDED", "KEY"], &rows)
        )
    })
}

/// The hub takes the new root before the folder does, so that a failure leaves both at the old.
async fn rotate(desk: &Desk<'_>, roles: &[Role]) -> Result<Verdict, HubError> {
    let mut operator = desk.operator()?;
    let next = operator.next_root(roles)?;
    let _: Version = desk.client.post("/control/v1/roots", &next.envelope).await?;
    next.commit(&desk.dir, &mut operator)?;
    show(desk, &operator)
}

pub(super) fn sign(desk: &Desk<'_>, wish: &Sign) -> Result<Verdict, HubError> {
    let payload = fs::read(&wish.file).map_err(HubError::file(&wish.file))?;
    let envelope = desk.operator()?.sign_bytes(wish.role, wish.kind, payload);
    desk.output.json(&envelope)?;
    Ok(Verdict::Yes)
}

/// The short name of a payload type.
pub(super) fn payload_type(text: &str) -> Result<PayloadType, String> {
    let full = serde_json::Value::from(format!("application/vnd.jtnt.{text}.v1+json"));
    serde_json::from_value(full).map_err(|e| {
        format!("one of root, policy, job, cancel, script, update-manifest, timestamp: {e}")
    })
}
