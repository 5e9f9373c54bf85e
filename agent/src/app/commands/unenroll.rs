//! `unenroll`: the identity goes, what proves the past stays.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use jtnt_proto::audit::{Event, Status};
use jtntctl::{Exit, Failure, Io};

use tokio::{task::spawn_blocking, time::timeout};

use super::{config::failure, ourselves, print};
use crate::{
    app::core::{Core, of_io},
    audit::Record,
    config::{Entry, load_or_default, merged},
    domain::enforcement::Abilities,
    identity::{self, Paths, client_key},
    runtime::durable,
};

/// How long the keeper of a key may take.
const DEVICE: Duration = Duration::from_secs(10);

pub(in crate::app) async fn run(path: PathBuf, io: &mut Io) -> Result<Exit, Failure> {
    let config = load_or_default(&path).map_err(|e| failure(&e))?;
    let labels = BTreeMap::new();
    let nothing = Entry { hub_url: None, key_store: None, labels: &labels };
    let without = merged(&path, nothing).map_err(|e| failure(&e))?;
    let core = Box::pin(Core::open(config, path.clone(), "unenroll", Abilities::default)).await?;
    let paths = Paths { data_dir: core.base.config.data_dir.clone() };
    if matches!(&*core.published.identity.borrow(), Err(identity::IdentityError::NotEnrolled)) {
        return Err(Failure::new(Exit::No, "unenrol", "this agent is not enrolled"));
    }
    let agent_id = core.state.agent_id.clone();
    let mut record = Record::of(Event::Enrollment).detail("action", "unenroll");
    (record.status, record.caller) = (Some(Status::Success), Some(ourselves()));
    record.object.clone_from(&core.base.config.hub_url);
    let recorded = core.state.audit.append(record).await;
    recorded.map_err(|e| Failure::new(Exit::Io, "record that the agent leaves", e.to_string()))?;
    let tokens = client_key::tokens(&paths, &core.base.config.key_store);
    identity::remove(&paths).map_err(|e| of_io("remove the identity", &e))?;
    durable::remove(&core.base.config.paths().policy())
        .map_err(|e| of_io("remove the policy", &e))?;
    let exists = path.exists();
    if exists {
        durable::replace(&path, &without, durable::mode_of(&path))
            .map_err(|e| of_io(&format!("write {}", path.display()), &e))?;
    }
    let kept = paths.data_dir.display().to_string();
    let config =
        if exists { format!("\n{}: hub_url removed", path.display()) } else { String::new() };
    let stays = format!("The audit log and its key stay below {kept}.");
    print(io, &format!("This agent has left its hub. {stays}{config}\n"))?;
    // Last, for a device may not answer.
    let sweep =
        move || client_key::sweep(&tokens, &paths, &agent_id, client_key::Which::OfOneThatLeaves);
    match timeout(DEVICE, spawn_blocking(sweep)).await {
        Ok(Ok(failed)) if failed.is_empty() => Ok(Exit::Done),
        Ok(Ok(failed)) => Err(Failure::new(Exit::Io, "destroy its keys", failed.join("; "))),
        Ok(Err(error)) => Err(Failure::new(Exit::Io, "destroy its keys", error.to_string())),
        Err(_late) => Err(Failure::new(Exit::Io, "destroy its keys", "a token does not answer")),
    }
}
