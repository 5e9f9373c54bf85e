//! Certificates that are not this agent's, each in a way of its own.

use jiff::ToSpan as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer,
    KeyPair, date_time_ymd,
};

use super::*;

const ID: &str = "0b1c2d3e-0000-8000-8000-000000000001";

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

fn ca() -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    let der = params.self_signed(&key).unwrap().der().clone();
    Ca { issuer: Issuer::new(params, key), der }
}

fn leaf(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Vec<CertificateDer<'static>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, ID);
    params.extended_key_usages = vec![Usage::ClientAuth];
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    change(&mut params);
    vec![params.signed_by(&KeyPair::generate().unwrap(), &ca.issuer).unwrap().der().clone()]
}

fn judge(chain: &[CertificateDer<'static>], ca: &Ca, now: &str) -> Result<CertInfo, CertFault> {
    let anchors = [ca.der.clone()];
    Judged { chain, anchors: &anchors, agent_id: ID }.at(time(now))
}

#[test]
fn a_certificate_of_ours_says_what_it_is() {
    let ca = ca();
    let info = judge(&leaf(&ca, |_| {}), &ca, "2026-06-01T00:00:00Z").unwrap();
    assert_eq!(info.subject, format!("CN={ID}"));
    assert_eq!(info.not_after.to_string(), "2027-01-01T00:00:00Z");
    assert!(info.serial.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
}

#[test]
fn of_a_chain_only_what_leads_to_an_authority_is_kept() {
    let named = |name: &str, by: Option<&Ca>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = match by {
            Some(by) => params.signed_by(&key, &by.issuer),
            None => params.self_signed(&key),
        };
        let der = signed.unwrap().der().clone();
        Ca { issuer: Issuer::new(params, key), der }
    };
    let (root, stranger) = (named("root", None), named("stranger", None));
    let middle = named("middle", Some(&root));
    let leaf = leaf(&middle, |_| {}).remove(0);
    let anchors = [root.der.clone()];
    let kept = |chain: &[&CertificateDer<'static>]| {
        needed(chain.iter().map(|&der| der.clone()).collect(), &anchors).unwrap()
    };
    let (alone, whole) = ([leaf.clone()], [leaf.clone(), middle.der.clone()]);
    assert_eq!(kept(&[&leaf, &middle.der]), whole);
    // Padded, with the root itself, in another order, and a thousand times.
    assert_eq!(kept(&[&leaf, &stranger.der, &middle.der, &root.der]), whole);
    assert_eq!(kept(&[&leaf, &root.der, &middle.der]), whole);
    let mut many = vec![&leaf];
    many.extend(vec![&middle.der; 1000]);
    assert_eq!(kept(&many), whole);
    // What leads nowhere is judged elsewhere; what turns in a circle ends.
    assert_eq!(kept(&[&leaf, &root.der]), alone);
    assert_eq!(kept(&[&stranger.der, &stranger.der]).len(), MAX_CHAIN);
    assert_eq!(kept(&[]), []);
}

#[test]
fn a_chain_that_no_server_would_take_is_refused() {
    let root = ca();
    let fat = leaf(&root, |p| {
        let oid = [1, 3, 6, 1, 4, 1, 1];
        let padding = vec![0; MAX_CHAIN_BYTES];
        p.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&oid, padding));
    });
    let why = needed(fat, &[root.der]).unwrap_err();
    assert!(why.contains("no server takes more than"), "{why}");
}

#[test]
fn one_for_another_agent_or_for_two_is_not_ours() {
    let ca = ca();
    let other = leaf(&ca, |p| p.distinguished_name.push(DnType::CommonName, "other"));
    let fault = judge(&other, &ca, "2026-06-01T00:00:00Z").unwrap_err();
    assert!(matches!(&fault, CertFault::WrongName { found, .. } if found == "other"), "{fault}");
    let nobody = leaf(&ca, |p| p.distinguished_name = rcgen::DistinguishedName::new());
    let fault = judge(&nobody, &ca, "2026-06-01T00:00:00Z").unwrap_err();
    assert!(matches!(fault, CertFault::WrongName { .. }));
}

#[test]
fn one_that_is_not_for_clients_is_refused() {
    let ca = ca();
    for usages in [vec![], vec![Usage::ServerAuth]] {
        let chain = leaf(&ca, |p| p.extended_key_usages = usages);
        assert_eq!(judge(&chain, &ca, "2026-06-01T00:00:00Z"), Err(CertFault::NotForClients));
    }
}

#[test]
fn dates_are_told_apart_and_an_expired_one_was_once_good() {
    let ca = ca();
    let chain = leaf(&ca, |_| {});
    let end: Timestamp = "2027-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(judge(&chain, &ca, "2027-01-01T00:00:00Z"), Err(CertFault::Expired(end)));
    assert!(judge(&chain, &ca, &(end - 1.second()).to_string()).is_ok());
    let early = judge(&chain, &ca, "2025-12-31T23:59:59Z");
    assert!(matches!(early, Err(CertFault::NotYetValid(_))));
    let anchors = [ca.der.clone()];
    assert!(Judged { chain: &chain, anchors: &anchors, agent_id: ID }.at_its_end().is_ok());
}

#[test]
fn one_of_another_authority_is_not_trusted() {
    let (ours, theirs) = (ca(), ca());
    let chain = leaf(&theirs, |_| {});
    let fault = judge(&chain, &ours, "2026-06-01T00:00:00Z").unwrap_err();
    assert!(matches!(fault, CertFault::Untrusted(_)));
    let anchors = [];
    let judged = Judged { chain: &chain, anchors: &anchors, agent_id: ID };
    assert!(matches!(judged.at_its_end(), Err(CertFault::Untrusted(_))));
}

#[test]
fn files_of_garbage_and_files_of_a_thousand_are_refused() {
    let key = KeyPair::generate().unwrap();
    let pem = CertificateParams::default().self_signed(&key).unwrap().pem();
    assert_eq!(certificates(pem.as_bytes()).unwrap().len(), 1);
    assert!(certificates(pem.repeat(1000).as_bytes()).unwrap_err().contains("more than"));
    assert!(certificates(b"").unwrap_err().contains("no certificate"));
    let fake = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    certificates(fake.as_bytes()).unwrap_err();
    certificates(key.serialize_pem().as_bytes()).unwrap_err();
}
