//! `unenroll`: the identity goes, what proves the past stays.

use std::{collections::BTreeMap, path::PathBuf};

use jtnt_proto::audit::{Event, Status};
use jtntctl::{Exit, Failure, Io};

use super::{config::failure, print};
use crate::{
    app::core::{Core, of_io},
    audit::Record,
    config::{load_or_default, merged},
    domain::enforcement::Abilities,
    identity::{self, Paths},
    runtime::durable,
};

pub(in crate::app) async fn run(path: PathBuf, io: &mut Io) -> Result<Exit, Failure> {
    let config = load_or_default(&path).map_err(|e| failure(&e))?;
    let without = merged(&path, None, &BTreeMap::new()).map_err(|e| failure(&e))?;
    let core = Box::pin(Core::open(config, path.clone(), "unenroll", Abilities::default)).await?;
    if matches!(&*core.published.identity.borrow(), Err(identity::IdentityError::NotEnrolled)) {
        return Err(Failure::new(Exit::No, "unenrol", "this agent is not enrolled"));
    }
    let mut record = Record::of(Event::Enrollment).detail("action", "unenroll");
    (record.status, record.origin) = (Some(Status::Success), Some("local"));
    record.object.clone_from(&core.base.config.hub_url);
    let recorded = core.state.audit.append(record).await;
    recorded.map_err(|e| Failure::new(Exit::Io, "record that the agent leaves", e.to_string()))?;
    let paths = Paths { data_dir: core.base.config.data_dir.clone() };
    identity::remove(&paths).map_err(|e| of_io("remove the identity", &e))?;
    durable::remove(&core.base.config.paths().policy())
        .map_err(|e| of_io("remove the policy", &e))?;
    let exists = path.exists();
    if exists {
        durable::replace(&path, &without, durable::mode_of(&path))
            .map_err(|e| of_io(&format!("write {}", path.display()), &e))?;
    }
    let kept = paths.data_dir.display();
    let config =
        if exists { format!("\n{}: hub_url removed", path.display()) } else { String::new() };
    let stays = format!("The audit log and its key stay below {kept}.");
    print(io, &format!("This agent has left its hub. {stays}{config}\n"))
}
