//! Keys in a token behind PKCS#11: they are made there, sign there and end there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::{Slot, TokenInfo},
    types::AuthPin,
};
use jtnt_proto::bytes::Hash;
use zeroize::Zeroizing;

use super::{Point, Signature, turn::Turn};
use crate::{domain::key_store::TokenUri, runtime::durable};

/// OID of P-256 in DER (RFC 5480, 2.1.1.1).
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const MAX_PIN_BYTES: u64 = 256;
/// Other tokens that a message names.
const MOST_TOLD: usize = 8;

/// PINs of one token that were wrong; beyond these none is tried any more.
const MOST_WRONG: usize = 2;

/// A maker's library, initialised once in a process as PKCS#11 asks (5.4). The caller has its turn, so
/// that nobody else loads it meanwhile.
fn module(path: &Path, _turn: &Turn) -> Result<Pkcs11, String> {
    static MODULES: Mutex<BTreeMap<PathBuf, Pkcs11>> = Mutex::new(BTreeMap::new());
    let modules = || MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules().get(path) {
        return Ok(module.clone());
    }
    let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    durable::untouched(path)?;
    let context = Pkcs11::new(path).map_err(|e| at(&e))?;
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) | Ok(()) => {}
        Err(e) => return Err(at(&e)),
    }
    modules().insert(path.to_owned(), context.clone());
    Ok(context)
}

/// PINs that were wrong, by the token's serial: a token locks itself for good after a few.
fn wrong() -> MutexGuard<'static, BTreeMap<String, BTreeSet<Hash>>> {
    static WRONG: Mutex<BTreeMap<String, BTreeSet<Hash>>> = Mutex::new(BTreeMap::new());
    WRONG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A token that is being used.
struct Open {
    session: Session,
    _turn: Turn,
}

fn failed(what: &'static str) -> impl Fn(Error) -> String {
    move |e| format!("{what}: {e}")
}

impl Open {
    fn to_sign(uri: &TokenUri) -> Result<Self, String> {
        Self::new(uri, Pkcs11::open_ro_session)
    }

    fn to_change(uri: &TokenUri) -> Result<Self, String> {
        Self::new(uri, Pkcs11::open_rw_session)
    }

    fn new(
        uri: &TokenUri,
        session: fn(&Pkcs11, Slot) -> Result<Session, Error>,
    ) -> Result<Self, String> {
        let turn = Turn::take(&uri.module)?;
        let module = module(&uri.module, &turn)?;
        let (slot, info) = find(&module, uri)?;
        let session = session(&module, slot);
        let session = session.map_err(failed("the token opens no session"))?;
        if info.login_required() {
            log_in(&session, &info, uri.pin.as_deref())?;
        }
        Ok(Self { session, _turn: turn })
    }

    fn objects(&self, class: ObjectClass, uri: &TokenUri) -> Result<Vec<ObjectHandle>, String> {
        let mut template = vec![Attribute::Class(class), Attribute::Token(true)];
        template.extend(uri.object.as_ref().map(|label| Attribute::Label(label.clone().into())));
        template.extend(uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
        self.session.find_objects(&template).map_err(failed("the token finds nothing"))
    }

    fn one(&self, class: ObjectClass, uri: &TokenUri) -> Result<ObjectHandle, String> {
        match self.objects(class, uri)?.as_slice() {
            [one] => Ok(*one),
            [] => Err("the key is not in the token".to_owned()),
            more => Err(format!("the token has {} keys of this id", more.len())),
        }
    }

    fn point(&self, public: ObjectHandle) -> Result<Point, String> {
        let read = self.session.get_attributes(public, &[AttributeType::EcPoint]);
        let read = read.map_err(failed("the token tells no public key"))?;
        let Some(Attribute::EcPoint(point)) = read.into_iter().next() else {
            return Err("the token tells no public key".to_owned());
        };
        // An OCTET STRING that holds the point; some tokens leave its head out.
        let bare = point.strip_prefix(&[0x04, 0x41]).unwrap_or(&point);
        let point = Point::try_from(bare).ok().filter(|point| point.first() == Some(&0x04));
        point.ok_or_else(|| "the token's public key is no point of P-256".to_owned())
    }

    /// A token that would give the key away keeps it no better than a file.
    fn keeps(&self, private: ObjectHandle) -> Result<(), String> {
        let asked = [AttributeType::Sensitive, AttributeType::Extractable];
        let told = self.session.get_attributes(private, &asked);
        let told = told.map_err(failed("the token does not say whether it keeps the key"))?;
        if told.contains(&Attribute::Sensitive(true))
            && told.contains(&Attribute::Extractable(false))
        {
            Ok(())
        } else {
            Err("the token would give the key away".to_owned())
        }
    }

    /// Label and id of an object.
    fn named(&self, object: ObjectHandle) -> Result<(String, Vec<u8>), String> {
        let read = self.session.get_attributes(object, &[AttributeType::Label, AttributeType::Id]);
        let (mut label, mut id) = (String::new(), Vec::new());
        for attribute in read.map_err(failed("the token does not tell what a key is called"))? {
            if let Attribute::Label(found) = &attribute {
                label = String::from_utf8_lossy(found).into_owned();
            }
            if let Attribute::Id(found) = attribute {
                id = found;
            }
        }
        Ok((label, id))
    }

    fn destroy(&self, uri: &TokenUri) -> Result<usize, String> {
        let mut gone = 0;
        for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
            for object in self.objects(class, uri)? {
                // What a token finds is not taken for what was looked for.
                let (label, id) = self.named(object)?;
                if uri.object.as_ref() != Some(&label) || uri.id.as_ref() != Some(&id) {
                    return Err("the token finds other keys than it was asked for".to_owned());
                }
                let destroyed = self.session.destroy_object(object);
                destroyed.map_err(failed("the token does not destroy an old key"))?;
                gone += 1;
            }
        }
        Ok(gone)
    }
}

/// The one token that the URI names.
fn find(context: &Pkcs11, uri: &TokenUri) -> Result<(Slot, TokenInfo), String> {
    let slots = context.get_slots_with_initialized_token();
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for slot in slots.map_err(failed("no token can be found"))? {
        let Ok(info) = context.get_token_info(slot) else { continue };
        let is = |wanted: &Option<String>, there: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == there.trim_end())
        };
        if is(&uri.token, info.label())
            && is(&uri.serial, info.serial_number())
            && is(&uri.manufacturer, info.manufacturer_id())
            && is(&uri.model, info.model())
            && uri.slot.is_none_or(|wanted| wanted == slot.id())
        {
            found.push((slot, info));
        } else if others.len() < MOST_TOLD {
            others.push(format!("{:?}", info.label().trim_end()));
        }
    }
    match (found.pop(), found.len()) {
        (None, _) => Err(format!(
            "no token is there that is {}; there are: {}. Does the library find its settings in \
             the environment of this process?",
            uri.store(),
            if others.is_empty() { "none".to_owned() } else { others.join(", ") }
        )),
        (Some(one), 0) => Ok(one),
        (Some(_), more) => {
            Err(format!("{} tokens are {}; name one of them by its serial", more + 1, uri.store()))
        }
    }
}

fn log_in(session: &Session, info: &TokenInfo, pin: Option<&Path>) -> Result<(), String> {
    if info.user_pin_locked() {
        return Err(
            "the token is locked after wrong PINs; its security officer opens it".to_owned()
        );
    }
    let login = |pin: Option<&AuthPin>| match session.login(UserType::User, pin) {
        Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        other => other,
    };
    let Some(path) = pin else {
        return if info.protected_authentication_path() {
            login(None).map_err(failed("the token lets nobody in"))
        } else {
            Err("the token asks for a PIN; add pin-source=file:/PATH to key_store".to_owned())
        };
    };
    durable::private(path)?;
    durable::untouched(path)?;
    let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    let pin = Zeroizing::new(durable::read(path, MAX_PIN_BYTES).map_err(|e| at(&e))?);
    let pin = std::str::from_utf8(&pin).map_err(|e| at(&e))?.trim_end_matches(['\n', '\r']);
    let (token, hash) = (info.serial_number().to_owned(), Hash::of(pin.as_bytes()));
    let tried = wrong().get(&token).cloned().unwrap_or_default();
    if tried.contains(&hash) {
        return Err(at(&"this PIN was wrong before, and is not tried again; write the right one"));
    }
    if tried.len() >= MOST_WRONG {
        return Err(at(
            &"two PINs were wrong before, so no other is tried; write the right one, and \
                        restart the agent",
        ));
    }
    if info.user_pin_final_try() {
        return Err(at(
            &"another wrong PIN would lock the token, so none is tried: log in once by \
                        hand with the right one, by pkcs11-tool --login",
        ));
    }
    match login(Some(&AuthPin::from(pin))) {
        Err(
            e @ Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked,
                _,
            ),
        ) => {
            wrong().entry(token).or_default().insert(hash);
            Err(at(&e))
        }
        other => other.map_err(failed("the token lets nobody in")),
    }
}

/// Makes a key of this label and id; its public half.
///
/// # Errors
/// When the token is not there, lets nobody in, or cannot.
pub fn make(key: &TokenUri) -> Result<Point, String> {
    let open = Open::to_change(key)?;
    let name = |class| {
        let label = key.object.clone().unwrap_or_default();
        vec![
            Attribute::Class(class),
            Attribute::KeyType(KeyType::EC),
            Attribute::Token(true),
            Attribute::Label(label.into()),
            Attribute::Id(key.id.clone().unwrap_or_default()),
        ]
    };
    let mut public = name(ObjectClass::PUBLIC_KEY);
    public.extend([Attribute::EcParams(P256.into()), Attribute::Verify(true)]);
    let mut private = name(ObjectClass::PRIVATE_KEY);
    private.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ]);
    let made = open.session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private);
    let (public, private) = made.map_err(failed("the token makes no key of P-256"))?;
    open.keeps(private).and_then(|()| open.point(public)).inspect_err(|_| {
        if let Err(error) = open.destroy(key) {
            tracing::warn!(%error, %key, "a key that is not used stays in the token");
        }
    })
}

/// Signs with a key.
///
/// # Errors
/// When the token is not there, lets nobody in, or no longer has the key.
pub fn sign(key: &TokenUri, sha256: &[u8; 32]) -> Result<Signature, String> {
    let open = Open::to_sign(key)?;
    let private = open.one(ObjectClass::PRIVATE_KEY, key)?;
    let signed = open.session.sign(&Mechanism::Ecdsa, private, sha256);
    let signed = signed.map_err(failed("the token does not sign"))?;
    Signature::try_from(signed.as_slice())
        .map_err(|_longer| format!("the token signed with {} bytes, not 64", signed.len()))
}

/// The ids of the keys of this label.
///
/// # Errors
/// When the token is not there, lets nobody in, or does not tell.
pub fn list(store: &TokenUri, label: &str) -> Result<Vec<Vec<u8>>, String> {
    let open = Open::to_sign(store)?;
    let labelled = TokenUri { object: Some(label.to_owned()), id: None, ..store.clone() };
    let mut ids = Vec::new();
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
        for object in open.objects(class, &labelled)? {
            let (found, id) = open.named(object)?;
            if found == label && !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

/// Destroys this key; how many objects went.
///
/// # Errors
/// When the token is not there, lets nobody in, or does not destroy it.
pub fn destroy(key: &TokenUri) -> Result<usize, String> {
    Open::to_change(key)?.destroy(key)
}
