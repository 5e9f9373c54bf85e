//! `PUT /api/v1/audit/{log_id}`: the lines of audit logs, for those who must keep them longer than a
//! machine does. Each log has one file, of lines that were checked one by one: the agent's key, the
//! chain, the number.

use std::{
    collections::BTreeMap,
    io,
    path::{Path as FilePath, PathBuf},
};

use axum::{
    Json,
    extract::{Path, Query, State},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::StatusCode;
use jtnt_proto::{
    audit::{SealedLine, ZERO, prev_text},
    bytes::Hash,
    hub::AuditLines,
    key::PublicKey,
};
use serde::Deserialize;
use tokio::{
    fs::{self, OpenOptions},
    io::AsyncWriteExt as _,
    sync::Mutex,
};

use super::{caller::Caller, problem::Refusal};
use crate::{error::HubError, hub::Shared};

/// What is kept of one log.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Logs whose end is known without reading their file again.
const MAX_OPEN: usize = 1024;

/// All logs.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    open: Mutex<BTreeMap<PathBuf, Held>>,
}

/// What is held of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Held {
    /// The number of the next line; nothing where any may be the first.
    next: Option<u64>,
    /// Leaf hash of the last.
    head: Option<Hash>,
    bytes: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Place {
    from: u64,
}

/// Why lines are not taken.
enum No {
    /// They do not begin where the held ones end.
    Elsewhere(u64),
    Bad(String),
    Full,
    Disk(io::Error),
}

impl Held {
    /// Takes a line, if it is the next one of this agent.
    fn follow(&mut self, raw: &[u8], agent_id: &str, keys: &[PublicKey]) -> Result<(), String> {
        let line = SealedLine::parse(raw).map_err(|fault| fault.to_string())?;
        let seq = line.line.seq;
        if self.next.is_some_and(|next| next != seq) {
            return Err(format!("seq {seq} comes out of its order"));
        }
        // Lines may come after the hub has heard that another key signs the next ones.
        let signed = keys.iter().any(|key| line.is_signed_by(key));
        if line.line.agent_id != agent_id || !signed {
            return Err(format!("seq {seq} is not signed by this agent's audit key"));
        }
        let before = self.head.or((seq == 0).then_some(ZERO));
        if before.is_some_and(|head| line.line.prev != prev_text(head)) {
            return Err(format!("seq {seq} does not follow the line before"));
        }
        self.next = seq.checked_add(1);
        self.head = Some(line.leaf_hash());
        self.bytes += raw.len() as u64 + 1;
        Ok(())
    }

    /// What the file of a log holds. A hub that was killed may have left half a line, which goes.
    async fn of(path: &FilePath) -> io::Result<Self> {
        let bytes = match fs::read(path).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read?,
        };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            let file = OpenOptions::new().write(true).open(path).await?;
            file.set_len(whole as u64).await?;
            file.sync_all().await?;
        }
        let mut lines = bytes.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n');
        let last = lines.rfind(|line| !line.is_empty()).map(SealedLine::parse);
        let Some(Ok(last)) = last else { return Ok(Self::default()) };
        let (next, head) = (last.line.seq.checked_add(1), Some(last.leaf_hash()));
        Ok(Self { next, head, bytes: whole as u64 })
    }
}

impl Lines {
    /// Takes lines from number `from` on; where to go on.
    async fn take(
        &self,
        path: PathBuf,
        (agent_id, keys): (&str, &[PublicKey]),
        (from, body): (u64, &Bytes),
    ) -> Result<u64, No> {
        let mut open = self.open.lock().await;
        let held = match open.remove(&path) {
            Some(held) => held,
            None => Held::of(&path).await.map_err(No::Disk)?,
        };
        let mut after = held;
        let checked = check(&mut after, (agent_id, keys), (from, body));
        let stored = match checked {
            Ok(()) if body.is_empty() => Ok(()),
            Ok(()) => append(&path, body).await.map_err(No::Disk),
            Err(no) => Err(no),
        };
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        // What half a write has left is looked at anew.
        if !matches!(stored, Err(No::Disk(_))) {
            open.insert(path, if stored.is_ok() { after } else { held });
        }
        stored.map(|()| after.next.unwrap_or(from))
    }
}

fn check(
    held: &mut Held,
    (agent_id, keys): (&str, &[PublicKey]),
    (from, body): (u64, &Bytes),
) -> Result<(), No> {
    if let Some(next) = held.next.filter(|next| *next != from) {
        return Err(No::Elsewhere(next));
    }
    if held.bytes + body.len() as u64 > MAX_FILE_BYTES {
        return Err(No::Full);
    }
    if body.is_empty() {
        return Ok(());
    }
    let lines = body.strip_suffix(b"\n").ok_or_else(|| No::Bad("the last line is torn".into()))?;
    held.next = held.next.or(Some(from));
    for line in lines.split(|byte| *byte == b'\n') {
        held.follow(line, agent_id, keys).map_err(No::Bad)?;
    }
    Ok(())
}

/// Where the lines of a log are.
pub(crate) fn file(dir: &FilePath, agent_id: &str, log_id: &str) -> PathBuf {
    dir.join("audit").join(agent_id).join(format!("{log_id}.log"))
}

/// Stores them before the answer.
async fn append(path: &FilePath, lines: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).await?;
    }
    let mut file = OpenOptions::new().append(true).create(true).open(path).await?;
    file.write_all(lines).await?;
    file.sync_data().await
}

pub(super) async fn put(
    State(core): State<Shared>,
    caller: Caller,
    Path(log_id): Path<String>,
    Query(place): Query<Place>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let keys = {
        let inner = core.lock();
        let agent = inner.state.agents.get(&caller.agent_id);
        let agent =
            agent.ok_or_else(|| Refusal::forbidden("AGENT", "this agent is not enrolled"))?;
        // So there are not more of them than logs that were seen.
        if !agent.logs.contains_key(&log_id) {
            let why = "no heartbeat has shown a log of this id yet";
            return Err(Refusal::forbidden("LOG_UNKNOWN", why));
        }
        agent.audit_keys()
    };
    let path = file(&core.settings.dir, &caller.agent_id, &log_id);
    let whose = (caller.agent_id.as_str(), keys.as_slice());
    match core.lines.take(path.clone(), whose, (place.from, &body)).await {
        Ok(next) => Ok(Json(AuditLines { next }).into_response()),
        Err(No::Elsewhere(next)) => {
            Ok((StatusCode::CONFLICT, Json(AuditLines { next })).into_response())
        }
        Err(No::Bad(why)) => Err(Refusal::unprocessable("LINE", why)),
        Err(No::Full) => {
            let why = format!("this hub keeps at most {MAX_FILE_BYTES} bytes of a log");
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", why))
        }
        Err(No::Disk(e)) => Err(HubError::file(&path)(e).into()),
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use jtnt_proto::audit::{Line, leaf_hash, seal};

    use super::*;

    fn lines(from: u64, to: u64) -> Vec<Vec<u8>> {
        let key = SigningKey::from_bytes(&[7; 32]);
        let mut made: Vec<Vec<u8>> = Vec::new();
        for seq in 0..to {
            let prev = made.last().map_or(ZERO, |line| leaf_hash(line));
            let line = serde_json::json!({
                "timestamp": "2026-06-01T00:00:00Z", "type": "audit", "event": "startup",
                "agent_id": "a", "seq": seq, "prev": prev_text(prev),
            });
            let line: Line = serde_json::from_value(line).unwrap();
            made.push(seal(&line, |text| key.sign(text).to_bytes()).unwrap());
        }
        made.split_off(usize::try_from(from).unwrap())
    }

    fn body(lines: &[Vec<u8>]) -> Bytes {
        lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect::<Vec<_>>().into()
    }

    #[tokio::test]
    async fn lines_are_taken_once_in_their_order_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "a", "l");
        let key = PublicKey::of(&SigningKey::from_bytes(&[7; 32]));
        let hub = Lines::default();
        let put = |hub: &'static Lines, from, body: Bytes| {
            let path = path.clone();
            async move { hub.take(path, ("a", &[key]), (from, &body)).await }
        };
        let hub: &'static Lines = Box::leak(Box::new(hub));
        assert!(matches!(put(hub, 0, Bytes::new()).await, Ok(0)), "asked");
        assert!(matches!(put(hub, 0, body(&lines(0, 5))).await, Ok(5)));
        assert!(matches!(put(hub, 0, body(&lines(0, 5))).await, Err(No::Elsewhere(5))));
        assert!(matches!(put(hub, 9, body(&lines(9, 12))).await, Err(No::Elsewhere(5))));
        let all = lines(0, 9);
        for bad in [
            body(&lines(6, 9)),
            body(&[lines(5, 6), lines(7, 8)].concat()),
            body(&lines(5, 9)).slice(..50),
            body(&[lines(5, 6), vec![b"no line".to_vec()]].concat()),
            body(&[String::from_utf8(all[5].clone())
                .unwrap()
                .replace("startup", "s")
                .into_bytes()]),
        ] {
            assert!(matches!(put(hub, 5, bad).await, Err(No::Bad(_))));
        }
        // A crash of the hub left half a line.
        append(&path, b"{\"half").await.unwrap();
        let hub: &'static Lines = Box::leak(Box::default());
        assert!(matches!(put(hub, 5, body(&lines(5, 9))).await, Ok(9)));
        assert_eq!(std::fs::read(&path).unwrap(), body(&all));
    }
}
