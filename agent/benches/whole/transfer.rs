//! A large file down and up, against curl and the same hub. curl neither hashes nor syncs what it
//! moves.

use std::{path::Path, process::Command, time::Duration};

use jtnt_proto::{
    bytes::Hash,
    job::{Download, Upload, Work},
};
use tokio::time::{Instant, sleep};

use crate::{
    Outcome,
    agent::Agent,
    site::{Site, owner},
    table::{Row, Table, mib},
};

const LEAST_OF_CURL: f64 = 0.6;
const MAX_GROWTH_KIB: u64 = 16 * 1024;
const SAMPLE: Duration = Duration::from_millis(50);

pub(crate) async fn measure(
    site: &Site,
    agent: &Agent,
    size_mib: usize,
    table: &mut Table,
) -> Outcome<()> {
    let content = noise(size_mib << 20);
    let artifact = site.hub.put_artifact(&content)?;
    crate::site::write(&site.path("files/up"), &content)?;
    drop(content);
    let curl = Curl::new(site);

    let (sha256, to) = (artifact.sha256, site.path("files/curl"));
    let best = curl.run(["-o".as_ref(), to.as_path()], &format!("artifacts/{sha256}")).await?;
    std::fs::remove_file(&to)?;
    let dest = site.path("files/down");
    let to = dest.display().to_string();
    let down = Work::Download(Download { artifact, dest: to, mode: None, run_as: owner() });
    let (_, took, grown) = watched(site, agent, down).await?;
    if std::fs::metadata(&dest)?.len() != artifact.size {
        return Err("what was downloaded has another size".into());
    }
    show(table, "download", size_mib, (took, best, grown));
    std::fs::remove_file(&dest)?;

    let from = site.path("files/up");
    let (path, name) = (from.display().to_string(), "agent".to_owned());
    let up = Work::Upload(Upload { path, name, run_as: owner() });
    let (job, took, grown) = watched(site, agent, up).await?;
    let path = format!("artifacts/{job}/curl?offset=0&sha256={sha256}");
    let best = curl.run(["-T".as_ref(), from.as_path()], &path).await?;
    show(table, "upload", size_mib, (took, best, grown));
    Ok(())
}

fn show(table: &mut Table, what: &str, size_mib: usize, seen: (Duration, Duration, u64)) {
    let (took, best, grown) = seen;
    let rate = |time: Duration| size_mib as f64 / time.as_secs_f64();
    let part = rate(took) / rate(best);
    let row = Row::new(format!("{what} of {size_mib} MiB"), format!("{:.0} MiB/s", rate(took)));
    let row = row.goal("60 % curl", part >= LEAST_OF_CURL);
    table.show(&row.limit(format!("curl {:.0} MiB/s: {:.0} % of it", rate(best), part * 100.0)));
    let row = Row::new(format!("  PSS grown by, {what}"), mib(grown));
    table.show(&row.goal("16 MiB", grown < MAX_GROWTH_KIB));
}

/// Runs a transfer while it looks at the agent's memory.
async fn watched(site: &Site, agent: &Agent, work: Work) -> Outcome<(String, Duration, u64)> {
    let before = agent.pss()?;
    let mut most = before;
    let begun = Instant::now();
    let job = {
        let transfer = site.run(work);
        tokio::pin!(transfer);
        loop {
            tokio::select! {
                job = &mut transfer => break job?,
                () = sleep(SAMPLE) => most = most.max(agent.pss()?),
            }
        }
    };
    Ok((job.job_id, begun.elapsed(), most.saturating_sub(before)))
}

/// curl with the agent's identity.
struct Curl {
    arguments: Vec<String>,
    url: String,
}

impl Curl {
    fn new(site: &Site) -> Self {
        let text = |path: &Path| path.display().to_string();
        let arguments = [
            "-fsS".to_owned(),
            "--cacert".to_owned(),
            text(&site.hub.ca_file()),
            "--cert".to_owned(),
            text(&site.path("data/certs/client.crt")),
            "--key".to_owned(),
            text(&site.path("data/certs/client.key")),
        ];
        Self { arguments: arguments.into(), url: format!("{}/api/v1", site.hub.url()) }
    }

    /// How long it took.
    async fn run(&self, how: [&Path; 2], path: &str) -> Outcome<Duration> {
        let mut command = Command::new("curl");
        command.args(&self.arguments).args(how).arg(format!("{}/{path}", self.url));
        let begun = Instant::now();
        let ended = tokio::task::spawn_blocking(move || command.output()).await??;
        let took = begun.elapsed();
        if ended.status.success() {
            return Ok(took);
        }
        Err(format!("curl: {}", String::from_utf8_lossy(&ended.stderr)).into())
    }
}

/// Bytes that nothing on the way makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut block = Hash::of(b"noise").0;
    let mebibyte = std::iter::repeat_with(|| {
        block = Hash::of(&block).0;
        block
    });
    let mebibyte: Vec<u8> = mebibyte.take((1 << 20) / 32).flatten().collect();
    mebibyte.repeat(bytes >> 20)
}
