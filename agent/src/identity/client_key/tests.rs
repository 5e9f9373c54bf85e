//! Files that tell of keys, and files that tell of none.

use super::*;
use crate::runtime::entropy::SeededEntropy;

fn refused(file: &str) -> String {
    open(file.as_bytes()).unwrap_err()
}

#[test]
fn a_key_in_a_file_fits_its_own_certificate_alone() {
    let make = || {
        make(&KeyStore::File, "agent", Path::new("/none"), SeededEntropy::new(1).as_ref()).unwrap()
    };
    let (made, other) = (make(), make());
    let params = CertificateParams::new(vec!["agent".to_owned()]).unwrap();
    let key = KeyPair::from_pem(std::str::from_utf8(&made.file).unwrap()).unwrap();
    let chain = vec![params.self_signed(&key).unwrap().der().clone()];
    assert_eq!(open(&made.file).unwrap().store, KeyStore::File);
    open(&made.file).unwrap().with(chain.clone()).unwrap();
    let why = open(&other.file).unwrap().with(chain).unwrap_err();
    assert!(why.contains("does not fit"), "{why}");
    assert!(made.csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    assert!(!format!("{made:?}").contains("PRIVATE"));
}

#[test]
fn garbage_is_no_key() {
    for file in [
        "",
        "\n",
        "garbage",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "pkcs11:",
        "pkcs11:token=a?module-path=/m.so",
        "pkcs11:token=a?module-path=/m.so\n-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "tpm2:",
        "tpm2:/dev/tpmrm0\n",
        "tpm2:/dev/tpmrm0\n-----BEGIN TSS2 PRIVATE KEY-----\nAAAA\n-----END TSS2 PRIVATE KEY-----\n",
    ] {
        refused(file);
    }
    open(b"\xff\xfe:\n").unwrap_err();
}

#[cfg(not(any(feature = "pkcs11", feature = "tpm2")))]
#[test]
fn a_build_without_a_feature_names_it() {
    assert!(refused("pkcs11:token=a;object=b;id=c?module-path=/m.so\n").contains("feature pkcs11"));
    assert!(refused("tpm2:/dev/tpmrm0\n").contains("feature tpm2"));
    for (store, feature) in [("tpm2", "tpm2"), ("pkcs11:token=a?module-path=/m.so", "pkcs11")] {
        let store = store.parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let intent = dir.path().join("intent");
        let why = make(&store, "agent", &intent, SeededEntropy::new(1).as_ref()).unwrap_err();
        assert!(why.contains(feature), "{why}");
    }
}

/// Public half of the keys below.
#[cfg(any(feature = "pkcs11", feature = "tpm2"))]
fn public(file: &str) -> String {
    let key = open(file.as_bytes()).unwrap();
    crate::identity::x509::block("PUBLIC KEY", &key.signs.public_key().unwrap())
}

#[cfg(feature = "pkcs11")]
#[test]
fn the_file_of_a_token_tells_the_public_key_without_asking_the_token() {
    let uri = "pkcs11:token=jtnt;object=agent;id=%F6%B1?module-path=/m.so&pin-source=file:/pin";
    let pem = "-----BEGIN PUBLIC KEY-----\n\
               MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEv0HczqdDoJfQSxEvYzICnCWdUIg7\n\
               u8/ALMbEGJ0uSnlw1XENDwG2GKpA6dax5xVhfs3uiXPUPb+SoDOTZf+RPA==\n\
               -----END PUBLIC KEY-----\n";
    assert_eq!(public(&format!("{uri}\n{pem}")), pem);
    let store = open(format!("{uri}\n{pem}").as_bytes()).unwrap().store;
    assert_eq!(store.to_string(), "pkcs11:token=jtnt?module-path=/m.so&pin-source=file:/pin");
    // Ed25519: the public key of RFC 8410, section 10.1.
    let ed25519 = "-----BEGIN PUBLIC KEY-----\n\
                   MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                   -----END PUBLIC KEY-----\n";
    assert!(refused(&format!("{uri}\n{ed25519}")).contains("P-256"));
}

#[cfg(feature = "tpm2")]
#[test]
fn the_file_of_a_tpm_is_the_one_that_openssl_reads() {
    // Made by swtpm; openssl's provider tpm2 printed the public key.
    let file = "tpm2:/dev/tpmrm0\n-----BEGIN TSS2 PRIVATE KEY-----\n\
        MIHwBgZngQUKAQOgAwEB/wIEQAAAAQRYAFYAIwALAAQEcgAAABAAEAADABAAIBet\n\
        ES2/jv/LRXZUQf19kyCJFahKFDi080qyy5cCj+QmACDonQqwOU6bhvXLgh1iLrg1\n\
        5LiOoJIJ9LU8KzyfOsIekASBgAB+ACCFUAXRQeRQA9L3OwNa7f9NIqL/yRLxPoTt\n\
        4tfiwJ+4qwAQISiDDZ+z042hbSSpnw0m80ss0VwNs4lnfXIbo1RppkbPwyYOi0I2\n\
        0Jn8je0UrEKsClac3S5et814AkNBE9aPmMu4XpZUCpnR/HOvYsuKqc5eUFe3GxaX\n\
        KiLj\n-----END TSS2 PRIVATE KEY-----\n";
    assert!(public(file).contains("F60RLb+O/8tFdlRB/X2TIIkVqEoU"), "{}", public(file));
    assert_eq!(open(file.as_bytes()).unwrap().store, KeyStore::tpm2(None));
    let pem = x509_parser::pem::Pem::iter_from_buffer(file.as_bytes()).next().unwrap().unwrap();
    let with =
        |der: &[u8]| format!("tpm2:/dev/tpmrm0\n{}", crate::identity::x509::block(tpm::LABEL, der));
    open(with(&pem.contents).as_bytes()).unwrap();
    for cut in 0..pem.contents.len() {
        refused(&with(&pem.contents[..cut]));
    }
    // Below another parent, and with a password: nobody here would have one.
    for (at, byte) in [(20, 2), (15, 0)] {
        let mut other = pem.contents.clone();
        other[at] = byte;
        assert!(refused(&with(&other)).contains("made below the owner"), "{at}");
    }
}
