//! Keys in tokens end with their files. They are not removed one by one as files go, for a crash
//! between the two would leave one behind: what no file names any more is looked for, and destroyed.
//!
//! A key in use must never be taken for one of those. So a key is named in a file before it is made,
//! keys are listed before the files are read, and whatever any file names is kept, in whichever token
//! and by whichever URI. A file that cannot be read might name any key, and then all are kept.

use std::{collections::BTreeSet, io, path::PathBuf};

use super::{Kept, token};
use crate::{
    domain::key_store::{KeyStore, TokenUri},
    identity::{Paths, commit, files::optional},
    runtime::durable,
};

/// Which keys of the agent may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that no file of an agent that is enrolled names.
    Unnamed,
    /// The same of one that leaves, which has no files any more.
    OfOneThatLeaves,
}

/// The tokens that have keys of this agent, or are to have: of these files, and of this store.
#[must_use]
pub fn tokens(paths: &Paths, store: &KeyStore) -> Vec<TokenUri> {
    let named = files(paths).ok().and_then(|files| named(&files).ok());
    let mut tokens: Vec<_> = named.iter().flatten().map(TokenUri::store).collect();
    if let KeyStore::Pkcs11(uri) = store {
        tokens.push(uri.clone());
    }
    tokens.sort_unstable_by_key(ToString::to_string);
    tokens.dedup();
    tokens
}

/// Destroys keys of this agent in these tokens that may go; what failed. Blocks.
#[must_use]
pub fn sweep(tokens: &[TokenUri], paths: &Paths, agent_id: &str, which: Which) -> Vec<String> {
    let mut failed = Vec::new();
    for store in tokens {
        match one(store, paths, agent_id, which) {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, token = %store, "old keys were destroyed"),
            Err(error) => failed.push(format!("old keys stay in {store}: {error}")),
        }
    }
    failed
}

fn one(store: &TokenUri, paths: &Paths, agent_id: &str, which: Which) -> Result<usize, String> {
    let there = token::list(store, agent_id)?;
    if which == Which::Unnamed && !paths.client_key().exists() {
        return Err(format!("{} is not there", paths.client_key().display()));
    }
    let read = files(paths).map_err(|e| e.to_string())?;
    let kept: BTreeSet<_> =
        named(&read).map_err(|e| e.to_string())?.into_iter().filter_map(|key| key.id).collect();
    let old = there.into_iter().filter(|id| !kept.contains(id));
    let gone = old.map(|id| token::destroy(&store.key(agent_id, id)));
    gone.sum()
}

/// Destroys the key that an enrolment made which came to nothing. Blocks.
pub fn abandon(paths: &Paths) {
    let intent = paths.enrol_key();
    let made = optional(&intent).ok().flatten().and_then(|file| Kept::of(&file).ok());
    if let Some(Kept::InToken(uri)) = made
        && let Err(error) = token::destroy(&uri)
    {
        tracing::warn!(%error, "a key that is not used stays in its token for now");
    }
    if let Err(error) = durable::remove(&intent) {
        tracing::warn!(%error, "{} stays", intent.display());
    }
}

/// Every file that may name a key.
fn files(paths: &Paths) -> io::Result<Vec<PathBuf>> {
    let mut all = commit::staged(&paths.data_dir)?;
    all.extend([
        paths.enrol_key(),
        paths.client_key_pending(),
        paths.client_key(),
        paths.client_key_backup(),
    ]);
    Ok(all)
}

/// The keys in tokens that these files name. What moves from one to another while they are read might
/// be missed, so they are read until two readings agree.
fn named(files: &[PathBuf]) -> io::Result<Vec<TokenUri>> {
    let once = || -> io::Result<Vec<TokenUri>> {
        let mut found = Vec::new();
        for path in files {
            let Some(content) = optional(path)? else { continue };
            let unread = |why: String| io::Error::other(format!("{}: {why}", path.display()));
            if let Kept::InToken(uri) = Kept::of(&content).map_err(unread)? {
                found.push(uri);
            }
        }
        Ok(found)
    };
    let (first, second) = (once()?, once()?);
    if first == second {
        return Ok(first);
    }
    Err(io::Error::other("files changed meanwhile"))
}
