//! What an enrolling agent says of its machine.

use jtnt_proto::hub::HostFacts;

use crate::identity::machine_id_sha256;

/// The facts of this machine.
#[must_use]
pub fn host_facts(agent_version: &str) -> HostFacts {
    let uname = rustix::system::uname();
    HostFacts {
        hostname: uname.nodename().to_string_lossy().into_owned(),
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        machine_id_sha256: machine_id_sha256(),
        agent_version: agent_version.to_owned(),
    }
}
