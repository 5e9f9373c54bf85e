//! Keys in tokens end with their files. They are not removed one by one as files go, for a crash
//! between the two would leave one behind: what no file names any more is looked for, and destroyed.

use super::{Kept, token};
use crate::{
    domain::key_store::{KeyStore, TokenUri},
    identity::{Paths, files::optional},
};

/// The tokens that have keys of this agent, or are to have: of these files, and of this store.
#[must_use]
pub fn tokens(paths: &Paths, store: &KeyStore) -> Vec<TokenUri> {
    let mut tokens: Vec<_> = named(paths).iter().map(TokenUri::store).collect();
    if let KeyStore::Pkcs11(uri) = store {
        tokens.push(uri.clone());
    }
    tokens.sort_unstable_by_key(ToString::to_string);
    tokens.dedup();
    tokens
}

/// Destroys keys of this agent in these tokens that none of its files names. Blocks. The caller holds
/// the enrolment's lock, or a key that is just being made would be taken for one of them.
pub fn sweep(tokens: &[TokenUri], paths: &Paths, agent_id: &str) {
    let named = named(paths);
    for store in tokens {
        let kept: Vec<_> = named
            .iter()
            .filter(|key| key.store() == *store)
            .filter_map(|key| key.id.clone())
            .collect();
        match token::sweep(store, agent_id, &kept) {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, token = %store, "old keys were destroyed"),
            Err(error) => {
                tracing::warn!(%error, token = %store, "old keys stay in the token for now");
            }
        }
    }
}

/// The keys in tokens that the files name.
fn named(paths: &Paths) -> Vec<TokenUri> {
    let files = [paths.client_key(), paths.client_key_backup(), paths.client_key_pending()];
    let contents = files.iter().filter_map(|path| optional(path).ok().flatten());
    let kept = contents.filter_map(|content| match Kept::of(&content) {
        Ok(Kept::InToken(uri)) => Some(uri),
        Ok(Kept::Here | Kept::ByTpm(_)) | Err(_) => None,
    });
    kept.collect()
}
