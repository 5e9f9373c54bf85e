//! `run`: the daemon. What it consists of reads as a list; it ends on a signal or when a part ends
//! that it cannot do without.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use jiff::civil::Time;
use jtnt_proto::audit::{Event, Status};
use jtntctl::{Exit, Failure};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    beat, certs, commands,
    core::Core,
    degraded,
    enrolments::Enrolments,
    reload::{By, Reloader},
    settings,
    witness::{self, Witness},
};
use crate::{
    admin::{Admin, Deps},
    audit::Record,
    config::{Config, Environment, load_or_default},
    domain::retention::Collector,
    domain::{backoff::Backoff, enforcement::Abilities, health::Enrolled},
    forward::{self, Local},
    heartbeat,
    overview::{Overview, VERSION},
    platform::{holder, host, memory, notify::Notify, sandbox, sweep},
    renewal::Renewal,
    runtime::tasks::Class,
    shim::{Launcher, Trial},
    telemetry::{
        http::{self, Endpoint, Pages},
        log::{self, LogLevel},
    },
    timetable::{self, Daily},
};

/// A stop has five seconds: most of them for what runs, the rest for the last records.
const DRAIN: Duration = Duration::from_millis(4500);
/// Over how long after the check of certificates a fleet renews them.
const RENEWAL_SPLAY: Duration = Duration::from_mins(30);
/// How much of the trusted time a power cut may cost.
const SAVE_TIME: Duration = Duration::from_mins(2);
/// How long after work its memory is given back, at most.
const REST: Duration = Duration::from_secs(10);
/// The audit log's retention is looked after at this local time.
const AUDIT_CLEAN_AT: Time = Time::constant(2, 30, 0, 0);

/// Runs the agent.
pub(super) async fn run(path: PathBuf, environment: Environment) -> Result<Exit, Failure> {
    let config = load_or_default(&path).map_err(|e| commands::config::failure(&e))?;
    let log = log::init(config.log_level, config.log_format);
    host::no_core_dumps().map_err(|e| failed("switch core dumps off", e))?;
    // Signals are heard from here on, so that none ends the agent half-way.
    let mut signals = Signals::new().map_err(|e| failed("listen for signals", e))?;
    let notify = Notify::new(environment.notify_socket.as_deref())
        .map_err(|e| failed("reach the service manager", e))?;
    let abilities = tried_abilities();
    let mut core = Box::pin(Core::open(config, path, "run", abilities)).await?;
    let reloader = Reloader::new(
        (core.base.path.clone(), core.base.config.clone()),
        Arc::clone(&core.published),
        log.clone(),
        core.state.audit.clone(),
    );
    record_start(&core).await;
    spawn_work(&mut core, &reloader).await;
    spawn_forwarding(&core);
    spawn_upkeep(&core, environment.watchdog, environment.notify_socket.as_deref());
    serve_pages(&core).await;
    let admin = Admin::new(admin_deps(&core, &reloader, log)).await;
    let admin = admin.map_err(|e| failed("make the admin API", e))?;
    admin.listen(&core.base.config.admin_socket).map_err(|e| failed("listen for commands", e))?;
    core.ready.send_replace(true);
    notify.ready();
    tracing::info!(version = VERSION, agent_id = core.state.agent_id, "ready");
    let why = until_end(&mut core, &mut signals, &reloader, &notify).await;
    notify.stopping();
    stop(core, why).await
}

/// What this machine can do for jobs. Whether it lets the agent is tried, meanwhile.
fn tried_abilities() -> impl FnOnce() -> Abilities + Send {
    let told = sandbox::abilities();
    let trial = told.namespaces.then(|| Launcher::of_this_binary().try_out());
    move || match trial.map(|trial| trial.and_then(Trial::end)) {
        None | Some(Ok(())) => told,
        Some(Err(error)) => {
            tracing::warn!(%error, "jobs have no namespaces here, so no enforcement is full");
            Abilities { namespaces: false, ..told }
        }
    }
}

fn failed(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Io, what, why.to_string())
}

/// Why the agent stops.
enum Why {
    Asked(&'static str),
    Lost(&'static str),
}

async fn until_end(
    core: &mut Core,
    signals: &mut Signals,
    reloader: &Reloader,
    notify: &Notify,
) -> Why {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Why::Asked("SIGTERM"),
            _ = signals.interrupt.recv() => return Why::Asked("SIGINT"),
            name = core.essential.ended() => return Why::Lost(name),
            _ = signals.hangup.recv() => {
                notify.reloading();
                if let Err(error) = reloader.reload(By::Signal).await {
                    tracing::error!("{error}; the configuration before it stays in force");
                }
                notify.ready();
            }
        }
    }
}

async fn record_start(core: &Core) {
    let record = Record::of(Event::Startup)
        .detail("version", VERSION)
        .detail("pid", std::process::id())
        .detail("boot_id", sweep::boot_id().unwrap_or_default());
    if let Err(error) = core.state.audit.append(record).await {
        tracing::error!(%error, "no job starts until the audit log can be written");
    }
    let (config, path) = (&core.base.config, &core.base.path);
    if let Err(error) = settings::tell(config, path, &core.state.audit).await {
        tracing::error!(error, "what changed in the configuration is not in the audit log");
    }
    let Some(aside) = &core.state.lost else { return };
    let mut record = Record::of(Event::Degraded)
        .detail("what", "journal")
        .detail("put_aside", aside.display().to_string());
    (record.status, record.object) = (Some(Status::Error), Some("journal".to_owned()));
    if let Err(error) = core.state.audit.append(record).await {
        tracing::error!(%error, "that a journal was put aside is not in the audit log");
    }
}

/// The agent's work: identity, heartbeat, policy, jobs.
async fn spawn_work(core: &mut Core, reloader: &Arc<Reloader>) {
    let (tasks, stop) = (core.base.tasks.clone(), core.base.tasks.shutdown());
    let enrolments = Enrolments {
        data_dir: core.base.config.data_dir.clone(),
        journal: core.state.journal.clone(),
        audit: core.state.audit.clone(),
        metrics: core.base.metrics.clone(),
        published: Arc::clone(&core.published),
        reloader: Arc::clone(reloader),
    };
    tasks.spawn("enrolments", Class::Essential, enrolments.run(stop.clone()));
    if let Some((mut keeper, work)) = core.work.take() {
        keeper.begin().await;
        tasks.spawn("policy", Class::Essential, keeper.run(stop.clone()));
        tasks.spawn("jobs", Class::Essential, work.run(stop.clone()));
    }
    if let Some(renewals) = core.renewals.take() {
        tasks.spawn("renewal", Class::Essential, renewals.run(stop.clone()));
        let heed = certs::heed(core.heartbeat.subscribe(), core.renewal.clone());
        let own = stop.clone();
        tasks.spawn("refused certs", Class::OneShot, async move {
            tokio::select! {
                () = heed => {}
                () = own.cancelled() => {}
            }
        });
    }
    let (backoff, kept) = watch::channel(None);
    let (witness, cosigned) = Witness::new(core.state.audit.clone());
    let (base, max) = (core.base.config.retry_base_seconds, core.base.config.retry_max_seconds);
    let deps = heartbeat::Deps {
        interval: Duration::from_secs(core.base.config.heartbeat_interval_seconds),
        backoff: Backoff::new(Duration::from_secs(base), Duration::from_secs(max)),
        saved: beat::saved(&core.state.journal),
        facts: beat::facts(core.overview.clone(), witness.clone()),
        answered: beat::answered(
            core.overview.clone(),
            core.keeper.clone(),
            core.jobs.clone(),
            core.renewal.clone(),
            witness,
        ),
        remember: move |saved| {
            backoff.send_replace(saved);
        },
        status: core.heartbeat.clone(),
        clock: Arc::clone(&core.base.clock),
        entropy: Arc::clone(&core.base.entropy),
        metrics: core.base.metrics.clone(),
    };
    let urgent = Arc::default();
    let hurry = witness::hurry(core.state.audit.clone(), Arc::clone(&urgent), stop.clone());
    tasks.spawn("hurry", Class::OneShot, hurry);
    tasks.spawn("degraded", Class::OneShot, degraded::run(core.overview.clone(), stop.clone()));
    let beat = heartbeat::run(deps, core.published.link.subscribe(), urgent, stop);
    tasks.spawn("heartbeat", Class::Essential, beat);
    // These end when the heartbeat does, having written the last word.
    tasks.spawn("witness", Class::OneShot, witness::keep(core.state.audit.clone(), cosigned));
    tasks.spawn("backoff", Class::OneShot, beat::keep(core.state.journal.clone(), kept));
}

/// Forwards audit lines to whom the configuration names.
fn spawn_forwarding(core: &Core) {
    let (tasks, base) = (&core.base.tasks, &core.base);
    let deps = forward::Deps {
        audit: core.state.audit.clone(),
        entropy: Arc::clone(&base.entropy),
        metrics: base.metrics.clone(),
    };
    for to in base.config.collectors() {
        let (deps, stop) = (deps.clone(), tasks.shutdown());
        let local = match to {
            Collector::Hub => {
                let link = core.published.link.subscribe();
                tasks.spawn("forward to hub", Class::Essential, forward::to_hub(deps, link, stop));
                continue;
            }
            Collector::Journald => Local::Journald,
            Collector::Syslog => Local::Syslog,
        };
        let time = (Arc::clone(&base.clock), base.zone.clone());
        tasks.spawn(local.word(), Class::Essential, forward::to_local(deps, local, time, stop));
    }
}

/// What looks after the agent itself.
fn spawn_upkeep(core: &Core, watchdog: Option<Duration>, socket: Option<&str>) {
    let (tasks, stop) = (&core.base.tasks, core.base.tasks.shutdown());
    let deps = timetable::Deps {
        agent_id: core.state.agent_id.clone(),
        journal: core.state.journal.clone(),
        clock: Arc::clone(&core.base.clock),
        zone: core.base.zone.clone(),
    };
    let daily = vec![
        cert_check(&core.base.config, &core.overview),
        cert_renewal(&core.base.config, &core.renewal),
        audit_clean(core),
    ];
    tasks.spawn("timetable", Class::Essential, timetable::run(deps, daily, stop.clone()));
    let (time, own) = (core.state.time.clone(), stop.clone());
    tasks.spawn("time mark", Class::Essential, async move {
        loop {
            tokio::select! {
                () = sleep(SAVE_TIME) => {}
                () = own.cancelled() => return,
            }
            if let Err(error) = time.save().await {
                tracing::warn!(%error, "the mark of time is not durable");
            }
        }
    });
    tasks.spawn("memory", Class::OneShot, give_memory_back(stop.clone()));
    if let (Some(every), Ok(notify)) = (watchdog, Notify::new(socket)) {
        tasks.spawn("watchdog", Class::Essential, async move {
            while !stop.is_cancelled() {
                notify.watchdog();
                tokio::select! {
                    () = sleep(every) => {}
                    () = stop.cancelled() => {}
                }
            }
        });
    }
}

/// A resting agent keeps little but what it knows.
async fn give_memory_back(stop: CancellationToken) {
    let mut spare = None;
    loop {
        tokio::select! {
            () = sleep(REST) => {}
            () = stop.cancelled() => return,
        }
        let given = match &mut spare {
            Some(spare) => memory::Spare::give_back(spare),
            // Not before the start is over: until then the loader may still change pages.
            none => memory::Spare::find().and_then(|found| none.insert(found).give_back()),
        };
        if let Err(error) = given {
            tracing::warn!(%error, "the memory of past work is kept");
            return;
        }
    }
}

type Done = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) fn cert_check(config: &Config, overview: &Overview) -> Daily {
    let at = cert_check_at(config);
    let overview = overview.clone();
    let work = Box::new(move || -> Done {
        let check = overview.health().checks.certificates;
        let status = check.status.word();
        if matches!(overview.facts().enrolled, Enrolled::No) {
            // There is no cert to be worried about yet.
            tracing::debug!(status, "daily cert check: {}", check.message);
        } else {
            tracing::info!(status, "daily cert check: {}", check.message);
        }
        Box::pin(std::future::ready(()))
    });
    Daily { name: "cert-check", at, splay: Duration::ZERO, work }
}

/// A little after the check, each agent at its own time: a fleet does not renew all at once.
fn cert_renewal(config: &Config, renewal: &Renewal) -> Daily {
    let renewal = renewal.clone();
    let work = Box::new(move || -> Done {
        renewal.check();
        Box::pin(std::future::ready(()))
    });
    Daily { name: "cert-renewal", at: cert_check_at(config), splay: RENEWAL_SPLAY, work }
}

fn cert_check_at(config: &Config) -> Time {
    config.cert_check_time.parse().unwrap_or(Time::constant(3, 0, 0, 0))
}

fn audit_clean(core: &Core) -> Daily {
    let audit = core.state.audit.clone();
    let work = Box::new(move || -> Done {
        let audit = audit.clone();
        Box::pin(async move {
            match audit.clean().await {
                Ok(cleaned) if cleaned.kept.is_empty() => {
                    tracing::info!(files = ?cleaned.files, "audit log cleaned");
                }
                Ok(cleaned) => tracing::warn!(
                    files = ?cleaned.files,
                    kept = ?cleaned.kept,
                    "old audit files stay until the hub has seen them, or holds them"
                ),
                Err(error) => tracing::error!(%error, "old audit files were not removed"),
            }
        })
    });
    Daily { name: "audit-clean", at: AUDIT_CLEAN_AT, splay: Duration::ZERO, work }
}

/// The two loopback endpoints. A taken port is said and tried again, never a reason not to start.
async fn serve_pages(core: &Core) {
    let (metrics, health) = (core.overview.clone(), core.overview.clone());
    let metrics: Pages = Arc::new(move |path| metrics.metrics_page(path));
    let health: Pages = Arc::new(move |path| health.health_page(path));
    for (setting, address, pages) in [
        ("metrics_listen", core.base.config.metrics_listen, metrics),
        ("health_listen", core.base.config.health_listen, health),
    ] {
        let endpoint = Endpoint { setting, address, pages, holder: holder::of_port };
        http::start(&core.base.tasks, endpoint).await;
    }
}

fn admin_deps(core: &Core, reloader: &Arc<Reloader>, log: LogLevel) -> Deps {
    let own = Arc::clone(reloader);
    Deps {
        overview: core.overview.clone(),
        jobs: core.jobs.clone(),
        renewal: core.renewal.clone(),
        proof: certs::proof(&core.published, &core.overview),
        authz: reloader.authz(),
        log,
        reload: Arc::new(move |caller| {
            let own = Arc::clone(&own);
            Box::pin(async move { own.reload(By::Caller(caller)).await })
        }),
        audit_dir: core.base.config.paths().audit(),
        tasks: core.base.tasks.clone(),
    }
}

/// Ends every task within the bound, then writes the last records.
async fn stop(core: Core, why: Why) -> Result<Exit, Failure> {
    core.ready.send_replace(false);
    let (status, reason, exit) = match why {
        Why::Asked(signal) => (Status::Success, signal.to_owned(), Exit::Done),
        Why::Lost(task) => (Status::Error, format!("the task {task} ended"), Exit::Io),
    };
    tracing::info!(reason, "stopping");
    let late = core.base.tasks.drain(DRAIN).await;
    if !late.is_empty() {
        tracing::warn!(?late, "tasks were ended that did not end by themselves");
    }
    let mut record = Record::of(Event::Shutdown).detail("reason", reason.clone());
    if !late.is_empty() {
        record = record.detail("cut_short", late);
    }
    record.status = Some(status);
    if let Err(error) = core.state.audit.append(record).await {
        tracing::error!(%error, "the stop is not in the audit log");
    }
    let saved = core.state.time.save().await;
    let cleared = if exit == Exit::Done { beat::clear(&core).await } else { Ok(()) };
    if let Err(error) = saved.and(cleared) {
        tracing::error!(%error, "the journal did not take the last records");
    }
    if exit == Exit::Done {
        return Ok(exit);
    }
    Err(failed("go on", reason).advise("the log above says why; the agent can be started again"))
}

/// The signals that mean something to the agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}
