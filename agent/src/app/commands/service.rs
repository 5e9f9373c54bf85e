//! `service`: the agent under systemd. The unit is part of this program, so that what is installed
//! is what this version was tested with.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use jtntctl::{Exit, Failure, Io};

use super::print;
use crate::{
    app::{cli::Service, core::of_io},
    runtime::durable,
};

const NAME: &str = "jtnt-agent.service";
const UNIT: &str = include_str!("../../../../deploy/systemd/jtnt-agent.service");
const UNIT_PATH: &str = "/etc/systemd/system/jtnt-agent.service";
/// Where the unit expects the program.
const PROGRAM: &str = "/opt/jtnt-agent/bin/jtnt-agent";
/// There while systemd is this machine's first process.
const SYSTEMD: &str = "/run/systemd/system";

pub(in crate::app) fn run(command: Service, io: &mut Io) -> Result<Exit, Failure> {
    if !Path::new(SYSTEMD).is_dir() {
        let why = "systemd does not run on this machine";
        return Err(Failure::new(Exit::No, "use the service", why)
            .advise("run it in the foreground or under your own service manager: jtnt-agent run"));
    }
    match command {
        Service::Install => install(io),
        Service::Uninstall => uninstall(io),
        Service::Start => systemctl(&["start", NAME]),
        Service::Stop => systemctl(&["stop", NAME]),
        Service::Status => status(),
    }
}

fn install(io: &mut Io) -> Result<Exit, Failure> {
    if !Path::new(PROGRAM).exists() {
        let own = std::env::current_exe().unwrap_or_default();
        let why = format!("{PROGRAM} is not there, and that is what the unit starts");
        return Err(Failure::new(Exit::No, "install the service", why)
            .advise(format!("sudo install -D -m 0755 {} {PROGRAM}", own.display())));
    }
    durable::replace(Path::new(UNIT_PATH), UNIT.as_bytes(), durable::PUBLIC)
        .map_err(|e| of_io(&format!("write {UNIT_PATH}"), &e))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", NAME])?;
    print(
        io,
        &format!("{UNIT_PATH} is installed and enabled.\nnext: sudo jtnt-agent service start\n"),
    )
}

fn uninstall(io: &mut Io) -> Result<Exit, Failure> {
    if !Path::new(UNIT_PATH).exists() {
        let why = format!("{UNIT_PATH} is not there; a package removes its own unit");
        return Err(Failure::new(Exit::No, "uninstall the service", why));
    }
    systemctl(&["disable", "--now", NAME])?;
    durable::remove(Path::new(UNIT_PATH)).map_err(|e| of_io(&format!("remove {UNIT_PATH}"), &e))?;
    systemctl(&["daemon-reload"])?;
    print(io, "The service is gone; configuration and data stay.\n")
}

/// Lets systemd speak for itself on our own streams.
fn systemctl(arguments: &[&str]) -> Result<Exit, Failure> {
    let what = format!("do systemctl {}", arguments.join(" "));
    let done = Command::new("systemctl").args(arguments).stdin(Stdio::null()).status();
    match done {
        Ok(status) if status.success() => Ok(Exit::Done),
        Ok(status) => Err(Failure::new(Exit::No, what, status.to_string())
            .advise("journalctl -u jtnt-agent -n 50 --no-pager")),
        Err(error) => Err(of_io(&what, &error)),
    }
}

fn status() -> Result<Exit, Failure> {
    let done = Command::new("systemctl")
        .args(["status", "--no-pager", "--lines=10", NAME])
        .stdin(Stdio::null())
        .status();
    match done.map(|status| status.code()) {
        Ok(Some(0)) => Ok(Exit::Done),
        Ok(_) => Ok(Exit::Unreachable),
        Err(error) => Err(of_io("do systemctl status", &error)),
    }
}
