//! Keys that a TPM 2.0 keeps: it makes them, and gives them out only sealed to itself. Signing loads
//! what it gave out; nothing stays in it.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::Path,
    time::Duration,
};

use tpm2_protocol::{
    TpmError, TpmMarshal, TpmUnmarshal, TpmWriter,
    basic::{TpmHandle, TpmUint16},
    constant::TPM_MAX_COMMAND_SIZE,
    data::{
        Tpm2bData, Tpm2bDigest, Tpm2bPrivate, Tpm2bPublic, Tpm2bSensitiveCreate, TpmAlgId,
        TpmEccCurve, TpmRc, TpmRcBase, TpmRh, TpmSt, TpmaObject, TpmaSession, TpmlPcrSelection,
        TpmsAuthCommand, TpmsEccParms, TpmsEccPoint, TpmsSchemeHash, TpmtEccScheme, TpmtKdfScheme,
        TpmtPublic, TpmtSigScheme, TpmtSymDefObject, TpmtTkHashcheck, TpmuPublicId,
        TpmuPublicParms, TpmuSigScheme, TpmuSignature, TpmuSymKeyBits, TpmuSymMode,
    },
    frame::{
        TpmCreateCommand, TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmCreateResponse,
        TpmFlushContextCommand, TpmFlushContextResponse, TpmFrame, TpmLoadCommand, TpmLoadResponse,
        TpmResponse, TpmSignCommand, TpmSignResponse, TpmUnmarshalBody, tpm_marshal_command,
    },
};

use super::{Point, Signature, turn::Turn};
use crate::runtime::clock::{Clock as _, SystemClock};

/// How long a TPM behind a socket may take; the kernel bounds the machine's own.
const PATIENCE: Duration = Duration::from_secs(30);
/// The owner's hierarchy, below which keys are made.
pub const OWNER: u32 = 0x4000_0001;
/// Tag, size and code of an answer (TPM 2.0 part 1, 18.2).
const HEAD: usize = 10;

/// A key as the TPM gives it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// `TPM2B_PUBLIC`.
    pub public: Vec<u8>,
    /// `TPM2B_PRIVATE`: encrypted by the TPM.
    pub private: Vec<u8>,
}

impl Sealed {
    /// The public half.
    ///
    /// # Errors
    /// When it is no key of P-256.
    pub fn point(&self) -> Result<Point, String> {
        let public: Tpm2bPublic = whole(&self.public)?;
        let TpmuPublicId::Ecc(TpmsEccPoint { x, y }) = public.inner.unique else {
            return Err("the TPM's key is none of an elliptic curve".to_owned());
        };
        let mut point = [0x04; 65];
        let (head, tail) = point.split_at_mut(33);
        if let Some(head) = head.get_mut(1..) {
            right(head, &x)?;
        }
        right(tail, &y)?;
        Ok(point)
    }
}

/// A number, filled up with zeros on its left.
fn right(to: &mut [u8], number: &[u8]) -> Result<(), String> {
    let start = to.len().checked_sub(number.len());
    let slot = start.and_then(|start| to.split_at_mut_checked(start));
    let (zeros, slot) = slot.ok_or("the TPM's number is longer than those of P-256")?;
    zeros.fill(0);
    slot.copy_from_slice(number);
    Ok(())
}

fn whole<T: TpmUnmarshal>(bytes: &[u8]) -> Result<T, String> {
    match T::unmarshal(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err("the TPM's key has bytes behind its end".to_owned()),
        Err(e) => Err(format!("the TPM's key cannot be read: {e}")),
    }
}

fn bytes(value: &impl TpmMarshal) -> Result<Vec<u8>, TpmError> {
    let mut buffer = [0; TPM_MAX_COMMAND_SIZE];
    let mut writer = TpmWriter::new(&mut buffer);
    value.marshal(&mut writer)?;
    Ok(writer.as_bytes().to_vec())
}

/// Makes a key.
///
/// # Errors
/// When the TPM is not there, or does not.
pub fn make(device: &Path) -> Result<Sealed, String> {
    let mut tpm = Tpm::open(device)?;
    tpm.below_primary(|tpm, primary| {
        let command = TpmCreateCommand {
            handles: [primary],
            in_sensitive: Tpm2bSensitiveCreate::default(),
            in_public: Tpm2bPublic { inner: signing() },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let made: TpmCreateResponse = tpm.ask("makes no key", &command, true)?;
        let unread = |e| format!("the TPM's key cannot be read: {e}");
        Ok(Sealed {
            public: bytes(&made.out_public).map_err(unread)?,
            private: bytes(&made.out_private).map_err(unread)?,
        })
    })
}

/// Signs with a key that this TPM made.
///
/// # Errors
/// When the TPM is not there, or it was cleared since, or the key is another one's.
pub fn sign(device: &Path, key: &Sealed, sha256: &[u8; 32]) -> Result<Signature, String> {
    let (in_private, in_public): (Tpm2bPrivate, Tpm2bPublic) =
        (whole(&key.private)?, whole(&key.public)?);
    let digest = Tpm2bDigest::try_from(sha256.as_slice()).map_err(|e| e.to_string())?;
    let mut tpm = Tpm::open(device)?;
    let loaded: TpmLoadResponse = tpm.below_primary(|tpm, primary| {
        let command = TpmLoadCommand { handles: [primary], in_private, in_public };
        tpm.ask(
            "does not take its key; was it cleared, or is this another machine's?",
            &command,
            true,
        )
    })?;
    let [handle] = loaded.handles;
    let hash = TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 };
    let command = TpmSignCommand {
        handles: [handle],
        digest,
        in_scheme: TpmtSigScheme { scheme: TpmAlgId::Ecdsa, details: TpmuSigScheme::Hash(hash) },
        validation: TpmtTkHashcheck {
            tag: TpmSt::HashCheck,
            hierarchy: TpmRh::Null,
            digest: Tpm2bDigest::default(),
        },
    };
    let signed = tpm.ask("does not sign", &command, true);
    let signed: TpmSignResponse = tpm.without(handle, signed)?;
    let TpmuSignature::Ecdsa(ecdsa) = signed.signature.signature else {
        return Err("the TPM signed by another scheme than ECDSA".to_owned());
    };
    let mut signature = [0; 64];
    let (r, s) = signature.split_at_mut(32);
    right(r, &ecdsa.signature_r)?;
    right(s, &ecdsa.signature_s)?;
    Ok(signature)
}

/// The storage key below which keys are made: derived from the owner's seed, so it is the same each
/// time. TCG's template for P-256, as openssl's provider uses it.
fn storage() -> TpmtPublic {
    let symmetric = TpmtSymDefObject {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::from(128)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    };
    p256(symmetric, TpmaObject::RESTRICTED | TpmaObject::DECRYPT)
}

fn signing() -> TpmtPublic {
    let symmetric = TpmtSymDefObject { algorithm: TpmAlgId::Null, ..TpmtSymDefObject::default() };
    p256(symmetric, TpmaObject::SIGN_ENCRYPT)
}

fn p256(symmetric: TpmtSymDefObject, purpose: TpmaObject) -> TpmtPublic {
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes: purpose
            | TpmaObject::FIXED_TPM
            | TpmaObject::FIXED_PARENT
            | TpmaObject::SENSITIVE_DATA_ORIGIN
            | TpmaObject::USER_WITH_AUTH
            | TpmaObject::NO_DA,
        auth_policy: Tpm2bDigest::default(),
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            symmetric,
            scheme: TpmtEccScheme::default(),
            curve_id: TpmEccCurve::NistP256,
            kdf: TpmtKdfScheme::default(),
        }),
        unique: TpmuPublicId::Ecc(TpmsEccPoint::default()),
    }
}

/// A connection to a TPM.
struct Tpm {
    device: Box<dyn Device>,
    _turn: Turn,
}

trait Device: Read + Write {}
impl<T: Read + Write> Device for T {}

impl Tpm {
    fn open(path: &Path) -> Result<Self, String> {
        let at = |e: io::Error| format!("no TPM at {}: {e}", path.display());
        let turn = Turn::take(path)?;
        let kind = path.metadata().map_err(at)?.file_type();
        if !kind.is_socket() && !kind.is_char_device() {
            return Err(format!("{} is no device of a TPM, and no socket", path.display()));
        }
        let device: Box<dyn Device> = if kind.is_socket() {
            let stream = UnixStream::connect(path).map_err(at)?;
            stream.set_read_timeout(Some(PATIENCE)).map_err(at)?;
            stream.set_write_timeout(Some(PATIENCE)).map_err(at)?;
            Box::new(stream)
        } else {
            Box::new(OpenOptions::new().read(true).write(true).open(path).map_err(at)?)
        };
        Ok(Self { device, _turn: turn })
    }

    /// Something that needs the storage key.
    fn below_primary<T>(
        &mut self,
        work: impl FnOnce(&mut Self, TpmHandle) -> Result<T, String>,
    ) -> Result<T, String> {
        let command = TpmCreatePrimaryCommand {
            handles: [TpmHandle::new(OWNER)],
            in_sensitive: Tpm2bSensitiveCreate::default(),
            in_public: Tpm2bPublic { inner: storage() },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let what = "makes no storage key; has its owner a password?";
        let primary: TpmCreatePrimaryResponse = self.ask(what, &command, true)?;
        let [handle] = primary.handles;
        let done = work(self, handle);
        self.without(handle, done)
    }

    /// Drops what is loaded, of which a TPM holds three; that it cannot counts only if all else went
    /// well.
    fn without<T>(&mut self, handle: TpmHandle, done: Result<T, String>) -> Result<T, String> {
        let command = TpmFlushContextCommand { handles: [], flush_handle: handle };
        let flushed: Result<TpmFlushContextResponse, _> =
            self.ask("does not let go of a key", &command, false);
        let done = done?;
        flushed.map(|_| done)
    }

    fn ask<C: TpmFrame, R: TpmUnmarshalBody>(
        &mut self,
        otherwise: &str,
        command: &C,
        authorised: bool,
    ) -> Result<R, String> {
        let failed = |e: &dyn std::fmt::Display| format!("the TPM {otherwise} ({e})");
        let mut buffer = [0; TPM_MAX_COMMAND_SIZE];
        let mut writer = TpmWriter::new(&mut buffer);
        // The empty password, which all objects here have.
        let password = TpmsAuthCommand {
            session_handle: TpmHandle::new(TpmRh::Pw.value()),
            session_attributes: TpmaSession::CONTINUE_SESSION,
            ..TpmsAuthCommand::default()
        };
        let (tag, sessions) = if authorised {
            (TpmSt::Sessions, vec![password])
        } else {
            (TpmSt::NoSessions, vec![])
        };
        tpm_marshal_command(command, tag, &sessions, &mut writer).map_err(|e| failed(&e))?;
        let answer = self.exchange(writer.as_bytes()).map_err(|e| failed(&e))?;
        let response = TpmResponse::cast(&answer).map_err(|e| failed(&e))?;
        match response.rc().map_err(|e| failed(&e))? {
            TpmRc::Fmt0(TpmRcBase::Success) => response.unmarshal().map_err(|e| failed(&e)),
            TpmRc::Warn(TpmRcBase::ObjectMemory) => Err(
                "the TPM is full of keys that others loaded and left; a socket without a resource \
                 manager keeps them until its TPM starts again"
                    .to_owned(),
            ),
            rc @ (TpmRc::Fmt0(_) | TpmRc::Fmt1(_) | TpmRc::Warn(_)) => Err(failed(&rc)),
        }
    }

    /// A device takes a command in one write, and gives the answer in one read; a socket gives it
    /// as it comes.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.device.write_all(command)?;
        let mut answer = vec![0; TPM_MAX_COMMAND_SIZE];
        let mut have = 0;
        let begun = SystemClock.uptime();
        loop {
            if SystemClock.uptime().saturating_sub(begun) > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let rest = answer.get_mut(have..).unwrap_or_default();
            let n = match self.device.read(rest) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            have += n;
            let size = answer.get(2..6).and_then(|s| s.try_into().ok()).map(u32::from_be_bytes);
            let size = size.and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
            if have >= HEAD && have >= size {
                answer.truncate(have);
                return Ok(answer);
            }
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
