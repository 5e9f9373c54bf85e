//! Keys in a token behind PKCS#11: they are made there, sign there and end there.

use std::{
    collections::BTreeMap,
    fmt,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
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

/// A maker's library, initialised once in a process as PKCS#11 asks (5.4), and PINs that were wrong:
/// a token locks itself for good after a few.
struct Module {
    context: Pkcs11,
    wrong: Mutex<BTreeMap<String, Hash>>,
}

fn module(path: &Path) -> Result<Arc<Module>, String> {
    static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(Arc::clone(module));
    }
    let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    let meta = path.metadata().map_err(|e| at(&e))?;
    if meta.mode() & 0o022 != 0 {
        return Err(at(&"others can change this library, so it is not loaded"));
    }
    let context = Pkcs11::new(path).map_err(|e| at(&e))?;
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) | Ok(()) => {}
        Err(e) => return Err(at(&e)),
    }
    let module = Arc::new(Module { context, wrong: Mutex::default() });
    modules.insert(path.to_owned(), Arc::clone(&module));
    Ok(module)
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
        let module = module(&uri.module)?;
        let (slot, info) = find(&module.context, uri)?;
        let session = session(&module.context, slot);
        let session = session.map_err(failed("the token opens no session"))?;
        if info.login_required() {
            log_in(&module, &session, &info, uri.pin.as_deref())?;
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

    fn destroy(&self, uri: &TokenUri) -> Result<usize, String> {
        let mut gone = 0;
        for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
            for object in self.objects(class, uri)? {
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
    let mut found = Vec::new();
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
        }
    }
    match (found.pop(), found.len()) {
        (None, _) => Err(format!("no token is there that is {}", uri.store())),
        (Some(one), 0) => Ok(one),
        (Some(_), more) => {
            Err(format!("{} tokens are {}; name one of them by its serial", more + 1, uri.store()))
        }
    }
}

fn log_in(
    module: &Module,
    session: &Session,
    info: &TokenInfo,
    pin: Option<&Path>,
) -> Result<(), String> {
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
    let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    let pin = Zeroizing::new(durable::read(path, MAX_PIN_BYTES).map_err(|e| at(&e))?);
    let pin = std::str::from_utf8(&pin).map_err(|e| at(&e))?.trim_end_matches(['\n', '\r']);
    let (token, hash) = (info.serial_number().to_owned(), Hash::of(pin.as_bytes()));
    let mut wrong = module.wrong.lock().unwrap_or_else(PoisonError::into_inner);
    if wrong.get(&token) == Some(&hash) {
        return Err(at(&"this PIN was wrong before, and is not tried again; write the right one"));
    }
    if info.user_pin_final_try() {
        return Err(at(
            &"another wrong PIN would lock the token, so none is tried: log in once by \
                        hand with the right one, by pkcs11-tool --login",
        ));
    }
    match login(Some(&AuthPin::from(pin))) {
        Err(e @ Error::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange, _)) => {
            wrong.insert(token, hash);
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

/// Destroys the keys of this label but those of these ids; how many objects went.
///
/// # Errors
/// When the token is not there, lets nobody in, or does not destroy one.
pub fn sweep(store: &TokenUri, label: &str, kept: &[Vec<u8>]) -> Result<usize, String> {
    let open = Open::to_change(store)?;
    let mut old = Vec::new();
    let labelled = TokenUri { object: Some(label.to_owned()), id: None, ..store.clone() };
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
        for object in open.objects(class, &labelled)? {
            let read = open.session.get_attributes(object, &[AttributeType::Id]);
            let read = read.map_err(failed("the token does not tell a key's id"))?;
            if let Some(Attribute::Id(id)) = read.into_iter().next()
                && !kept.contains(&id)
                && !old.contains(&id)
            {
                old.push(id);
            }
        }
    }
    old.into_iter().map(|id| open.destroy(&store.key(label, id))).sum()
}
