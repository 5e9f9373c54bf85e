//! The writer's thread: what has gathered since the last sync becomes the next batch.

use jtnt_proto::key::PublicKey;
use tokio::sync::{mpsc, oneshot, watch};

use super::{AuditError, Cleaned, Head, Inclusion, Offer, Record, log::Log};

/// Lines in one batch.
const BATCH: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, AuditError>>;

#[derive(Debug)]
pub(super) enum Command {
    Append(Box<Record>, Reply<u64>),
    Clean(Reply<Cleaned>),
    Checkpoint(Option<u64>, Reply<Offer>),
    Witnessed(String, Reply<()>),
    Prove(u64, Reply<Inclusion>),
    RolledBack(String, Reply<bool>),
    Held(String, u64),
    RotateKey(Reply<(u64, PublicKey)>),
}

/// Serves until the last handle is gone.
pub(super) fn run(mut log: Log, mut queue: mpsc::Receiver<Command>, head: &watch::Sender<Head>) {
    while let Some(first) = queue.blocking_recv() {
        let (mut records, mut replies, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Append(record, reply) => {
                    records.push(*record);
                    replies.push(reply);
                }
                other @ (Command::Clean(_)
                | Command::Checkpoint(..)
                | Command::Witnessed(..)
                | Command::Prove(..)
                | Command::RolledBack(..)
                | Command::Held(..)
                | Command::RotateKey(_)) => others.push(other),
            }
            if records.len() < BATCH {
                next = queue.try_recv().ok();
            }
        }
        // Whoever no longer waits has its line all the same, hence the unread results below.
        match log.append(records) {
            Ok(seqs) => {
                head.send_replace(log.head());
                for (reply, seq) in replies.into_iter().zip(seqs) {
                    let _gone = reply.send(Ok(seq));
                }
            }
            Err(error) => {
                tracing::error!(%error, lines = replies.len(), "audit lines are not durable");
                head.send_replace(log.head());
                for reply in replies {
                    let _gone = reply.send(Err(error.clone()));
                }
            }
        }
        for other in others {
            serve(&mut log, other, head);
        }
    }
}

/// What comes after the lines of its batch. Whoever asked may be gone; who is not sees the log as it is
/// by then.
fn serve(log: &mut Log, command: Command, head: &watch::Sender<Head>) {
    match command {
        Command::Append(..) => {}
        Command::Clean(reply) => {
            let cleaned = log.clean();
            head.send_replace(log.head());
            let _gone = reply.send(cleaned);
        }
        Command::Checkpoint(since, reply) => {
            let _gone = reply.send(log.checkpoint(since));
        }
        Command::Prove(seq, reply) => {
            let _gone = reply.send(log.prove(seq));
        }
        Command::Held(log_id, lines) => {
            log.held(&log_id, lines);
            head.send_replace(log.head());
        }
        Command::RotateKey(reply) => {
            let rotated = log.rotate_key();
            head.send_replace(log.head());
            let _gone = reply.send(rotated);
        }
        Command::RolledBack(note, reply) => {
            let anew = log.rolled_back(&note);
            head.send_replace(log.head());
            let _gone = reply.send(anew);
        }
        Command::Witnessed(note, reply) => {
            let kept = log.witnessed(&note);
            head.send_replace(log.head());
            let _gone = reply.send(kept);
        }
    }
}
