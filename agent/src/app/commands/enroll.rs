//! `enroll`: the options become one errand, whose outcome is told in full.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jtnt_proto::admin::v1::{ReloadRequest, agent_service_client::AgentServiceClient};
use jtntctl::{Exit, Failure, Io, Target};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{config::failure, print};
use crate::{
    app::cli::Enroll,
    config::{Config, Entry, Environment, load_or_default, merged},
    enrol::{
        self, ConfigFile, Deps, EnrolError, Enrolled, HubCa, Input, Options, RootPin, host_facts,
    },
    hub::Address,
    identity::{self, RootSource},
    overview::VERSION,
    runtime::{
        clock::SystemClock,
        durable,
        entropy::SystemEntropy,
        lock::{Lock, LockError},
    },
    telemetry::metrics::Metrics,
};

/// A token is a short text; a file that holds more than this is none.
const MAX_TOKEN_BYTES: u64 = 4096;
/// How long a running agent may take to hear of the identity.
const PATIENCE: Duration = Duration::from_secs(5);

pub(in crate::app) async fn run(
    asked: Enroll,
    path: PathBuf,
    environment: Environment,
    io: &mut Io,
) -> Result<Exit, Failure> {
    let before = load_or_default(&path).map_err(|e| failure(&e))?;
    let token = token(&asked, environment)?;
    let wrong = |what: &str, why: String, advice: &str| {
        Failure::new(Exit::Usage, what, why).advise(advice.to_owned())
    };
    let hub = asked.hub.as_ref().or(before.hub_url.as_ref());
    let hub = hub.map_or_else(
        || Err("no hub is configured".to_owned()),
        |url| Address::hub(url).map_err(|e| e.to_string()),
    );
    let hub = hub.map_err(|e| wrong("use --hub", e, "--hub https://hub.example.com:8443"))?;
    let proxy = before.hub_proxy.as_deref().map(Address::proxy).transpose();
    let proxy = proxy.map_err(|e| Failure::new(Exit::Usage, "use hub_proxy", e.to_string()))?;
    let labels: BTreeMap<_, _> = asked.labels.into_iter().collect();
    let (hub_url, key_store) = (hub.to_string(), asked.key_store.as_ref().map(ToString::to_string));
    let entry = Entry { hub_url: Some(&hub_url), key_store: key_store.as_deref(), labels: &labels };
    let content = merged(&path, entry).map_err(|e| failure(&e))?;
    let written = told_of_config(&path, &content, entry);
    let mut all_labels = before.labels.clone();
    all_labels.extend(labels);
    let paths = identity::Paths { data_dir: before.data_dir.clone() };
    let options = Options {
        data_dir: before.data_dir.clone(),
        hub,
        proxy,
        token,
        root: match (asked.root.root, asked.root.root_sha256) {
            (Some(file), _) => RootPin::File(file),
            (None, Some(hash)) => RootPin::Sha256(hash),
            (None, None) if asked.root.trust_hub_root => RootPin::TrustHub,
            (None, None) if asked.force && paths.root().exists() => RootPin::Kept,
            (None, None) => {
                let why = "there is no root of roles".to_owned();
                let advice = "--root FILE, or --root-sha256 HEX; the hub's operator has it for you";
                return Err(wrong("enrol", why, advice));
            }
        },
        hub_ca: asked.hub_ca.map(HubCa::File).or(asked.hub_ca_sha256.map(HubCa::Sha256)),
        labels: all_labels,
        host: host_facts(VERSION),
        config: written.is_some().then_some(ConfigFile { path, content }),
        key_store: asked.key_store.unwrap_or_else(|| before.key_store.clone()),
        force: asked.force,
    };
    let metrics = Metrics::new(VERSION)
        .map_err(|e| Failure::new(Exit::Io, "make the metrics", e.to_string()))?;
    let deps = Deps { clock: Arc::new(SystemClock), entropy: Arc::new(SystemEntropy), metrics };
    let enrolled = Box::pin(enrol::enroll(options, deps)).await.map_err(|e| of_enrol(&e))?;
    let next = next_step(&before).await;
    print(io, &told(&enrolled, written.as_deref(), next))
}

/// Which file is written, and what of it; nothing where it says all of it already.
fn told_of_config(path: &Path, content: &[u8], entry: Entry<'_>) -> Option<String> {
    let there = durable::read(path, u64::try_from(content.len()).unwrap_or(u64::MAX));
    if there.is_ok_and(|there| there == content) {
        return None;
    }
    let store = entry.key_store.map(|_| "key_store");
    let labels = (!entry.labels.is_empty()).then_some("labels");
    let what: Vec<_> = [Some("hub_url"), store, labels].into_iter().flatten().collect();
    Some(format!("{}: {} written", path.display(), what.join(" and ")))
}

/// A running agent takes the identity up at once when it is told to; it looks by itself, too.
async fn next_step(config: &Config) -> &'static str {
    let lock = Lock::take(&config.paths().lock(), "enrolment");
    if !matches!(lock, Err(LockError::Held { .. } | LockError::Unnamed { .. })) {
        return "Start the agent: sudo jtnt-agent service start, or jtnt-agent run in the foreground";
    }
    let told = async {
        let agent = Target::Socket(config.admin_socket.clone()).connect(PATIENCE).await.ok()?;
        AgentServiceClient::new(agent).reload(ReloadRequest {}).await.ok()
    };
    match timeout(PATIENCE, told).await {
        Ok(Some(_)) => "The running agent has taken it up: jtnt-agent status",
        Ok(None) | Err(_) => {
            "The running agent takes it up within two seconds: jtnt-agent status --watch"
        }
    }
}

fn token(asked: &Enroll, environment: Environment) -> Result<Zeroizing<String>, Failure> {
    let given = match (&asked.token, &asked.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(file)) => {
            let what = format!("read the token in {}", file.display());
            let bytes = durable::read(file, MAX_TOKEN_BYTES)
                .map_err(|e| crate::app::core::of_io(&what, &e))?;
            let text = String::from_utf8(bytes)
                .map_err(|_e| Failure::new(Exit::Usage, what, "it is not text"))?;
            Some(text)
        }
        (None, None) => environment.enroll_token,
    };
    let token = given.map(|text| Zeroizing::new(text.trim().to_owned()));
    token.filter(|token| !token.is_empty()).ok_or_else(|| {
        Failure::new(Exit::Usage, "enrol", "there is no token")
            .advise("--token-file FILE, or JTNT_ENROLL_TOKEN; the hub's operator has one for you")
    })
}

/// Local faults and hubs that cannot be reached are told apart from a hub that says no.
fn of_enrol(error: &EnrolError) -> Failure {
    let exit = match (error.input, error.reason.as_ref()) {
        (Some(Input::Denied), _) => Exit::Denied,
        (Some(Input::Unreadable), _)
        | (None, "STORAGE" | "UNPLACED" | "UNRECORDED" | "AUDIT_KEY" | "TLS_KEY") => Exit::Io,
        (Some(Input::Wrong), _) => Exit::Usage,
        (None, _) => Exit::No,
    };
    let mut failure = Failure::new(exit, "enrol", error.message.clone()).advise(error.advice);
    failure.reason = Some(error.reason.to_string());
    failure
}

fn told(enrolled: &Enrolled, written: Option<&str>, next: &str) -> String {
    let source = match enrolled.root_source {
        RootSource::Pinned => "from outside the hub",
        RootSource::TrustedHub => {
            "FROM THE HUB ITSELF: whoever runs the hub can sign anything; for trials only"
        }
    };
    format!(
        "Enrolled.\n\nAgent        {}\nCertificate  {}, valid until {}\nRoot         version {}, \
         {source}\n             sha256 {}\nConfig       {}\n\n{next}\n",
        enrolled.agent_id,
        enrolled.cert.serial,
        enrolled.cert.not_after,
        enrolled.root_version,
        enrolled.root_sha256,
        written.unwrap_or("unchanged"),
    )
}
