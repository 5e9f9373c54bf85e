//! Where the key of the client certificate is kept: in its file, by a TPM, or in a token behind
//! PKCS#11, which RFC 7512 names by a URI.

use std::{fmt, path::PathBuf, str::FromStr};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// The TPM of the machine, behind the kernel's resource manager.
const TPM: &str = "/dev/tpmrm0";
/// Attributes of a URI; any other would be one that counts elsewhere and not here.
const KNOWN: &[&str] = &[
    "token",
    "serial",
    "manufacturer",
    "model",
    "slot-id",
    "object",
    "id",
    "type",
    "module-path",
    "pin-source",
    "pin-value",
];
/// A longer URI names nothing that exists.
const MAX_BYTES: usize = 4096;

/// Where new keys are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KeyStore {
    /// In `client.key`.
    #[default]
    File,
    /// By the TPM behind this device, or this Unix socket. The file holds what only it can open.
    Tpm2(PathBuf),
    /// In a token. The file holds a URI.
    Pkcs11(TokenUri),
}

impl KeyStore {
    /// The TPM at `path`.
    #[must_use]
    pub fn tpm2(path: Option<&str>) -> Self {
        Self::Tpm2(path.unwrap_or(TPM).into())
    }
}

impl FromStr for KeyStore {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "file" => Ok(Self::File),
            None if text == "tpm2" => Ok(Self::tpm2(None)),
            Some(("tpm2", path)) if path.starts_with('/') && !path.contains(char::is_control) => {
                Ok(Self::tpm2(Some(path)))
            }
            Some(("pkcs11", _)) => {
                let uri: TokenUri = text.parse()?;
                if uri.object.is_some() || uri.id.is_some() {
                    return Err("a store is a token, not a key: leave object and id out".to_owned());
                }
                Ok(Self::Pkcs11(uri))
            }
            _ => {
                Err("expected file, tpm2, tpm2:/DEVICE or a URI that begins with pkcs11:"
                    .to_owned())
            }
        }
    }
}

impl fmt::Display for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Tpm2(path) => write!(f, "tpm2:{}", path.display()),
            Self::Pkcs11(uri) => uri.fmt(f),
        }
    }
}

impl serde::Serialize for KeyStore {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A token, or a key in one: RFC 7512, of its attributes those that name a token for certain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenUri {
    /// The library of the token's maker; absolute.
    pub module: PathBuf,
    /// The file that holds the PIN of the token's user.
    pub pin: Option<PathBuf>,
    /// What the token is called.
    pub token: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its maker.
    pub manufacturer: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// The slot that it is in.
    pub slot: Option<u64>,
    /// The label of the key.
    pub object: Option<String>,
    /// The id of the key.
    pub id: Option<Vec<u8>>,
}

impl TokenUri {
    /// A key in this token.
    #[must_use]
    pub fn key(&self, object: &str, id: Vec<u8>) -> Self {
        Self { object: Some(object.to_owned()), id: Some(id), ..self.clone() }
    }

    /// The token of this key.
    #[must_use]
    pub fn store(&self) -> Self {
        Self { object: None, id: None, ..self.clone() }
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bytes: Vec<u8> = percent_decode_str(value).collect();
        let text = || {
            let text = String::from_utf8(bytes.clone()).ok();
            let text = text.filter(|t| !t.is_empty() && !t.contains(char::is_control));
            text.ok_or_else(|| format!("{name}: expected text, found {value:?}"))
        };
        match name {
            "token" => once(name, &mut self.token, text()?),
            "serial" => once(name, &mut self.serial, text()?),
            "manufacturer" => once(name, &mut self.manufacturer, text()?),
            "model" => once(name, &mut self.model, text()?),
            "object" => once(name, &mut self.object, text()?),
            "id" => once(name, &mut self.id, bytes),
            "slot-id" => {
                let slot = value.parse().map_err(|e| format!("slot-id: {e}"))?;
                once(name, &mut self.slot, slot)
            }
            "type" if value == "private" => Ok(()),
            "module-path" => {
                let mut module = (self.module != PathBuf::new()).then(|| self.module.clone());
                once(name, &mut module, absolute(name, &text()?)?)?;
                self.module = module.unwrap_or_default();
                Ok(())
            }
            "pin-source" => {
                let text = text()?;
                let path = text.strip_prefix("file:").unwrap_or(&text);
                once(name, &mut self.pin, absolute(name, path)?)
            }
            "pin-value" => {
                Err("pin-value would tell the PIN to whoever reads this: write it to a file that \
                     root alone can read, and name that with pin-source=file:/PATH"
                    .to_owned())
            }
            _ => Err(format!("{name}: only the value \"private\" is known here")),
        }
    }
}

fn once<T>(name: &str, slot: &mut Option<T>, value: T) -> Result<(), String> {
    if slot.is_some() {
        return Err(format!("{name} stands twice"));
    }
    *slot = Some(value);
    Ok(())
}

fn absolute(name: &str, path: &str) -> Result<PathBuf, String> {
    if path.starts_with('/') {
        Ok(path.into())
    } else {
        // What was written there by mistake may be a PIN.
        Err(format!("{name}: expected an absolute path"))
    }
}

impl FromStr for TokenUri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("pkcs11:").filter(|_| text.len() <= MAX_BYTES);
        let rest = rest.ok_or("expected a pkcs11: URI (RFC 7512)")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let all = path.split(';').map(|a| (a, true));
        for (attribute, in_path) in all.chain(query.split('&').map(|a| (a, false))) {
            if attribute.is_empty() {
                continue;
            }
            let (name, value) = attribute
                .split_once('=')
                .ok_or("expected NAME=VALUE after the scheme, each ; and each &")?;
            if !KNOWN.contains(&name) {
                return Err(format!(
                    "{:?} is no attribute that is known here; known are {}",
                    name.chars().take(64).collect::<String>(),
                    KNOWN.join(", ")
                ));
            }
            if in_path == matches!(name, "module-path" | "pin-source" | "pin-value") {
                let place = if in_path { "after the ?" } else { "before the ?" };
                return Err(format!("{name} belongs {place}"));
            }
            uri.take(name, value)?;
        }
        if uri.module == PathBuf::new() {
            return Err(
                "module-path is missing, which follows a ?: the library of the token's maker"
                    .to_owned(),
            );
        }
        if uri.token.is_none() && uri.serial.is_none() && uri.slot.is_none() {
            return Err("it names no token: give token, serial or slot-id".to_owned());
        }
        Ok(uri)
    }
}

impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text: &str| percent_encode(text.as_bytes(), PLAIN).to_string();
        let named = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("{name}={}", encoded(value)))
        };
        let path = [
            named("token", &self.token),
            named("manufacturer", &self.manufacturer),
            named("serial", &self.serial),
            named("model", &self.model),
            self.slot.map(|slot| format!("slot-id={slot}")),
            named("object", &self.object),
            self.id.as_ref().map(|id| format!("id={}", percent_encode(id, NON_ALPHANUMERIC))),
        ];
        let module = Some(format!("module-path={}", encoded(&self.module.to_string_lossy())));
        let pin = self
            .pin
            .as_ref()
            .map(|pin| format!("pin-source=file:{}", encoded(&pin.to_string_lossy())));
        let joined = |parts: Vec<Option<String>>, by: &str| {
            parts.into_iter().flatten().collect::<Vec<_>>().join(by)
        };
        write!(f, "pkcs11:{}?{}", joined(path.into(), ";"), joined(vec![module, pin], "&"))
    }
}

/// What RFC 7512 lets stand in every attribute.
const PLAIN: &percent_encoding::AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<KeyStore>().unwrap_err()
    }

    #[test]
    fn stores_are_read_and_told_alike() {
        for text in [
            "file",
            "tpm2:/dev/tpmrm0",
            "pkcs11:token=jtnt?module-path=/usr/lib/softhsm/libsofthsm2.so",
            "pkcs11:token=My%20token;serial=0f;model=SoftHSM%20v2?module-path=/m.so&pin-source=file:/etc/pin",
            "pkcs11:slot-id=3?module-path=/m.so",
        ] {
            let store: KeyStore = text.parse().unwrap();
            assert_eq!(store.to_string(), text);
        }
        assert_eq!("tpm2".parse::<KeyStore>().unwrap().to_string(), "tpm2:/dev/tpmrm0");
    }

    #[test]
    fn what_names_no_store_is_refused_with_what_is_missing() {
        for (text, why) in [
            ("", "expected file"),
            ("files", "expected file"),
            ("tpm2:", "expected file"),
            ("tpm2:dev", "expected file"),
            ("pkcs11:", "module-path is missing"),
            ("pkcs11:token=a", "module-path is missing"),
            ("pkcs11:?module-path=/m.so", "names no token"),
            ("pkcs11:manufacturer=a?module-path=/m.so", "names no token"),
            ("pkcs11:token=a?module-path=m.so", "absolute"),
            ("pkcs11:token=a;token=b?module-path=/m.so", "twice"),
            ("pkcs11:token=a?module-path=/m.so&module-path=/n.so", "twice"),
            ("pkcs11:token=a?module-path=/m.so&pin-value=1234", "pin-source"),
            ("pkcs11:token=a?module-path=/m.so&pin-source=|ask", "absolute"),
            ("pkcs11:token=a;module-path=/m.so", "after the ?"),
            ("pkcs11:?module-path=/m.so&token=a", "before the ?"),
            ("pkcs11:token=a;x-color=red?module-path=/m.so", "no attribute"),
            ("pkcs11:token=a;type=public?module-path=/m.so", "only the value"),
            ("PKCS11:token=a?module-path=/m.so&pin-value=1", "begins with pkcs11:"),
            ("pkcs11:token=a?modul-path=/m.so", "no attribute"),
            ("pkcs11:token=a&module-path=/m.so", "module-path is missing"),
            ("pkcs11:token=a;object=b?module-path=/m.so", "leave object"),
            ("pkcs11:token=%ff?module-path=/m.so", "expected text"),
            ("pkcs11:token=a%0ab?module-path=/m.so", "expected text"),
            ("pkcs11:slot-id=-1?module-path=/m.so", "slot-id"),
            ("pkcs11:token?module-path=/m.so", "NAME=VALUE"),
        ] {
            assert!(refused(text).contains(why), "{text}: {}", refused(text));
        }
        let long = format!("pkcs11:token={}?module-path=/m.so", "a".repeat(MAX_BYTES));
        assert!(refused(&long).contains("RFC 7512"));
    }

    proptest! {
        #[test]
        fn a_key_is_named_so_that_it_is_found_again(
            token in "[^\\p{C}]{1,32}", object in "[^\\p{C}]{1,32}", id: Vec<u8>, pin: bool,
        ) {
            let pin = pin.then(|| PathBuf::from("/etc/a pin"));
            let store =
                TokenUri { module: "/m;o?d&u=l%e.so".into(), pin, token: Some(token), ..TokenUri::default() };
            let key = store.key(&object, id);
            prop_assert_eq!(key.store(), store);
            prop_assert_eq!(key.to_string().parse::<TokenUri>().unwrap(), key);
        }

        #[test]
        fn no_text_is_too_strange_to_be_judged(text in "(pkcs11:)?.{0,64}") {
            if let Ok(store) = text.parse::<KeyStore>() {
                prop_assert_eq!(store.to_string().parse::<KeyStore>().unwrap(), store);
            }
        }
    }
}
