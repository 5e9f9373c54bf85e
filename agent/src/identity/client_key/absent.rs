//! What stands for the devices that this build was made without.

#[cfg(not(feature = "pkcs11"))]
pub(super) mod token {
    //! See the module of this name in builds that have it.

    use std::sync::Arc;

    use crate::{domain::key_store::TokenUri, runtime::signer::TlsSigner};

    pub(in super::super) fn make(uri: &TokenUri) -> Result<(String, Arc<dyn TlsSigner>), String> {
        Err(super::absent("pkcs11", uri))
    }

    pub(in super::super) fn open(uri: &TokenUri, _: &[u8]) -> Result<Arc<dyn TlsSigner>, String> {
        Err(super::absent("pkcs11", uri))
    }

    pub(in super::super) fn list(token: &TokenUri, _: &str) -> Result<Vec<Vec<u8>>, String> {
        Err(super::absent("pkcs11", token))
    }

    pub(in super::super) fn destroy(key: &TokenUri) -> Result<usize, String> {
        Err(super::absent("pkcs11", key))
    }
}

#[cfg(not(feature = "tpm2"))]
pub(super) mod tpm {
    //! See the module of this name in builds that have it.

    use std::{path::Path, sync::Arc};

    use crate::runtime::signer::TlsSigner;

    pub(in super::super) fn make(device: &Path) -> Result<(String, Arc<dyn TlsSigner>), String> {
        Err(super::absent("tpm2", &device.display()))
    }

    pub(in super::super) fn open(device: &Path, _: &[u8]) -> Result<Arc<dyn TlsSigner>, String> {
        Err(super::absent("tpm2", &device.display()))
    }
}

fn absent(feature: &str, place: &dyn std::fmt::Display) -> String {
    format!(
        "this build of the agent was made without the feature {feature}, so it knows no keys in \
         {place}"
    )
}
