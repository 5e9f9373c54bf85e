//! What a renewal of the certificate costs: a key, a request, a judgement, a trial, and the swap.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::mpsc,
    time::Duration,
};

use jtnt_proto::admin::v1::{ForceRenewalRequest, cert_service_client::CertServiceClient};
use tokio::time::Instant;

use crate::{
    Outcome,
    agent::Agent,
    site::{Site, exec_true},
    table::{Row, Table, ms, percentile},
};

const CPU: Duration = Duration::from_millis(50);
/// What a renewal may add to the longest of other requests.
const HELD_UP: Duration = Duration::from_millis(1);
/// How long a quiet time is: about a renewal.
const QUIET: Duration = Duration::from_millis(15);

pub(crate) async fn measure(
    site: &Site,
    agent: &Agent,
    count: usize,
    table: &mut Table,
) -> Outcome<()> {
    let before = agent.cpu()?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        renew(site).await?;
        times.push(begun.elapsed());
    }
    let used = agent.cpu()?.saturating_sub(before) / u32::try_from(count).unwrap_or(1).max(1);
    table.show(&Row::new("renewal, agent's CPU", ms(used)).goal("50 ms", used <= CPU));
    let p50 = percentile(&mut times, 50);
    table.show(&Row::new("renewal, typed to done: p50", ms(p50)));
    // Jobs that come while certificates change places, against those of a quiet time.
    let mut quiet = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        site.run(exec_true()).await?;
        quiet.push(begun.elapsed());
    }
    let mut busy = Vec::with_capacity(count);
    for _ in 0..count {
        let (renewed, took) = tokio::join!(renew(site), async {
            let begun = Instant::now();
            site.run(exec_true()).await.map(|_| begun.elapsed())
        });
        renewed?;
        busy.push(took?);
    }
    let (quiet, busy) = (percentile(&mut quiet, 50), percentile(&mut busy, 50));
    let row = Row::new("job while it renews: p50", ms(busy));
    table.show(&row.limit(format!("without {}", ms(quiet))));
    held_up(site, agent, count, table).await
}

/// How long the agent keeps others waiting: whoever asks it one thing after another, on one
/// connection, sees every pause of the thread that serves all of them.
async fn held_up(site: &Site, agent: &Agent, count: usize, table: &mut Table) -> Outcome<()> {
    let socket = jtntctl::Target::Socket(site.socket());
    let channel = socket.connect(Duration::from_secs(5)).await.map_err(|f| f.why)?;
    let mut certs = CertServiceClient::new(channel);
    let (mut quiet, mut busy) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        let asker = Asker::start(agent.health())?;
        tokio::time::sleep(QUIET).await;
        quiet.push(asker.longest().await?);
        let asker = Asker::start(agent.health())?;
        let mut news = certs.force_renewal(ForceRenewalRequest {}).await?.into_inner();
        let mut renewed = false;
        while let Some(answer) = news.message().await? {
            renewed |= answer.news.is_some_and(|news| !news.serial.is_empty());
        }
        busy.push(asker.longest().await?);
        if !renewed {
            return Err("not renewed".into());
        }
    }
    let (quiet, busy) = (percentile(&mut quiet, 50), percentile(&mut busy, 50));
    let added = busy.saturating_sub(quiet);
    let row = Row::new("renewal, longest other request: added", ms(added));
    table.show(&row.goal("1 ms", added <= HELD_UP).limit(format!(
        "{} while it renews, {} without; p50 of all",
        ms(busy),
        ms(quiet)
    )));
    Ok(())
}

/// Asks `/livez` until it is told to end.
struct Asker {
    end: mpsc::Sender<()>,
    asking: tokio::task::JoinHandle<io::Result<Duration>>,
}

impl Asker {
    fn start(address: SocketAddr) -> Outcome<Self> {
        let (end, ended) = mpsc::channel();
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        ask(&mut stream)?;
        let asking = tokio::task::spawn_blocking(move || {
            let mut longest = Duration::ZERO;
            while ended.try_recv().is_err() {
                longest = longest.max(ask(&mut stream)?);
            }
            Ok(longest)
        });
        Ok(Self { end, asking })
    }

    async fn longest(self) -> Outcome<Duration> {
        self.end.send(())?;
        Ok(self.asking.await??)
    }
}

fn ask(stream: &mut TcpStream) -> io::Result<Duration> {
    let begun = Instant::now();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = [0; 1024];
    if stream.read(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(begun.elapsed())
}

async fn renew(site: &Site) -> Outcome<()> {
    let mut command = Command::new(site.program());
    command.arg("--config").arg(site.path("config.json")).args(["cert", "renew", "--force"]);
    let ended = tokio::task::spawn_blocking(move || command.output()).await??;
    if ended.status.success() {
        return Ok(());
    }
    Err(format!("not renewed: {}", String::from_utf8_lossy(&ended.stderr)).into())
}
