//! The operator: whoever holds the role keys. The server never does; the subcommands and the
//! tests sign here, on the client's side, and hand the server envelopes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use jtnt_proto::{
    bytes::{Base64, Hash},
    envelope::{Envelope, PayloadType},
    job::{Cancel, Job, Priority, ScriptEndorsement, SealedSecret, SecretDelivery, Work},
    json,
    key::PublicKey,
    policy::{Audience, Limits, Policy},
    root::{Role as RootRole, Roles, Root},
};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305 as SUITE,
    hpke::{Hpke as _, HpkePublicKey},
};
use serde::Serialize;

use crate::{
    clock,
    durable::{self, Access},
    error::{HubError, random},
};

const ROOT_LIFE: Duration = Duration::from_secs(365 * 86_400);
const JOB_LIFE: Duration = Duration::from_secs(86_400);

/// The roles whose keys an operator holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Role {
    /// Signs roots.
    Root,
    /// Signs policies.
    Policy,
    /// Signs jobs and cancels.
    Job,
    /// Endorses scripts.
    Script,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Root, Self::Policy, Self::Job, Self::Script];

    /// The name in files and root documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Policy => "policy",
            Self::Job => "job",
            Self::Script => "script",
        }
    }
}

/// The role keys of a hub folder, and the root they stand in.
#[derive(Debug)]
pub struct Operator {
    folder: PathBuf,
    root: Root,
    keys: BTreeMap<Role, SigningKey>,
}

impl Operator {
    /// Opens the keys of a hub folder.
    ///
    /// # Errors
    /// When a key or the root is missing or damaged.
    pub fn open(hub: &Path) -> Result<Self, HubError> {
        let folder = hub.join("operator");
        let at = hub.join("root.json");
        let bytes = fs::read(&at).map_err(HubError::file(&at))?;
        let envelope: Envelope =
            json::from_slice(&bytes).map_err(|e| HubError::damaged("root.json", e))?;
        let root = json::from_slice(&envelope.payload.0)
            .map_err(|e| HubError::damaged("the root in root.json", e))?;
        let mut keys = BTreeMap::new();
        for role in Role::ALL {
            keys.insert(role, read_key(&folder.join(format!("{}.key", role.name())))?);
        }
        Ok(Self { folder, root, keys })
    }

    /// Makes the keys and the first root. Used once in the life of a hub folder.
    pub(crate) fn create(
        hub: &Path,
        hub_ca: Vec<Base64>,
        witness: PublicKey,
    ) -> Result<(Self, Envelope), HubError> {
        let folder = hub.join("operator");
        durable::private_dir(&folder).map_err(HubError::file(&folder))?;
        let mut keys = BTreeMap::new();
        for role in Role::ALL {
            let path = folder.join(format!("{}.key", role.name()));
            keys.insert(role, new_key(&path)?);
        }
        let one = |key: PublicKey| RootRole { keyids: [key.id()].into(), threshold: 1 };
        let public = |role: Role| keys.get(&role).map_or(witness, PublicKey::of);
        let root = Root {
            root_id: uuid(random()?),
            version: 1,
            issued_at: clock::now(),
            expires_at: clock::after(ROOT_LIFE),
            keys: Role::ALL.map(public).into_iter().chain([witness]).map(|k| (k.id(), k)).collect(),
            roles: Roles {
                root: one(public(Role::Root)),
                policy: one(public(Role::Policy)),
                job: one(public(Role::Job)),
                script: one(public(Role::Script)),
                witness: one(witness),
            },
            hub_ca,
            max_policy_days: None,
        };
        let operator = Self { folder, root, keys };
        let envelope = operator.sign(Role::Root, PayloadType::Root, &operator.root);
        Ok((operator, envelope))
    }

    /// The root under which this operator signs.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// The key of `role`.
    #[must_use]
    pub fn key(&self, role: Role) -> Option<&SigningKey> {
        self.keys.get(&role)
    }

    /// The id of the key of `role`, as rules name signers.
    #[must_use]
    pub fn key_id(&self, role: Role) -> Option<Hash> {
        self.keys.get(&role).map(|key| PublicKey::of(key).id())
    }

    /// Signs any bytes, with any role, as any type: tests need the wrong ones too.
    #[must_use]
    pub fn sign_bytes(&self, role: Role, kind: PayloadType, payload: Vec<u8>) -> Envelope {
        let keys: Vec<&SigningKey> = self.keys.get(&role).into_iter().collect();
        Envelope::sign(kind, payload, &keys)
    }

    /// Signs `document` as JSON. A document that cannot be written as JSON signs as no bytes;
    /// none of ours can fail so.
    #[must_use]
    pub fn sign<T: Serialize>(&self, role: Role, kind: PayloadType, document: &T) -> Envelope {
        self.sign_bytes(role, kind, serde_json::to_vec(document).unwrap_or_default())
    }

    /// A job for `agent_id` with a new id, valid from now for a day. Change what you like, then
    /// [`Self::sign_job`].
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn job(&self, agent_id: &str, work: Work) -> Result<Job, HubError> {
        let now = clock::now();
        Ok(Job {
            job_id: format!("job-{}", hex::encode(random::<8>()?)),
            agent_id: agent_id.to_owned(),
            root_id: self.root.root_id.clone(),
            issued_at: now,
            not_before: now,
            expires_at: clock::after(JOB_LIFE),
            min_policy_version: 0,
            min_root_version: 0,
            priority: Priority::Normal,
            idempotent: false,
            stream_output: false,
            work,
            limits: Limits::default(),
            secrets: Vec::new(),
        })
    }

    /// Seals a secret of a job to its agent's key.
    ///
    /// # Errors
    /// When the key is none.
    pub fn seal(
        job: &Job,
        (name, delivery): (&str, SecretDelivery),
        key: &Base64,
        secret: &[u8],
    ) -> Result<SealedSecret, HubError> {
        let info = SealedSecret::info(&job.agent_id, &job.job_id, name);
        let (enc, text) = SUITE
            .seal(&info, &[], secret, &HpkePublicKey(key.0.clone()))
            .map_err(|e| HubError::damaged("seal key", e))?;
        let sealed = Base64([enc.0, text].concat());
        Ok(SealedSecret { name: name.to_owned(), delivery, sealed })
    }

    /// Signs a job with the job role.
    #[must_use]
    pub fn sign_job(&self, job: &Job) -> Envelope {
        self.sign(Role::Job, PayloadType::Job, job)
    }

    /// Signs the cancellation of a job.
    #[must_use]
    pub fn cancel(&self, job_id: &str, agent_id: &str, reason: Option<&str>) -> Envelope {
        let cancel = Cancel {
            job_id: job_id.to_owned(),
            agent_id: agent_id.to_owned(),
            root_id: self.root.root_id.clone(),
            issued_at: clock::now(),
            expires_at: clock::after(JOB_LIFE),
            reason: reason.map(str::to_owned),
        };
        self.sign(Role::Job, PayloadType::Cancel, &cancel)
    }

    /// Signs a policy with the policy role.
    #[must_use]
    pub fn sign_policy(&self, policy: &Policy) -> Envelope {
        self.sign(Role::Policy, PayloadType::Policy, policy)
    }

    /// All agents of this operator's root.
    #[must_use]
    pub fn audience(&self) -> Audience {
        let root_id = self.root.root_id.clone();
        Audience { root_id, agents: None, labels: BTreeMap::new() }
    }

    /// Endorses a script for rules that admit by signer.
    #[must_use]
    pub fn endorse(&self, name: &str, script: &[u8], interpreter: &str) -> Envelope {
        let endorsement = ScriptEndorsement {
            name: name.to_owned(),
            root_id: self.root.root_id.clone(),
            sha256: Hash::of(script),
            interpreter: interpreter.to_owned(),
            issued_at: clock::now(),
            expires_at: clock::after(JOB_LIFE),
        };
        self.sign(Role::Script, PayloadType::Script, &endorsement)
    }

    /// The next root, with new keys for `roles`, signed by the root keys of this version and of
    /// the next. Nothing on disk changes until [`NextRoot::commit`].
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn next_root(&self, roles: &[Role]) -> Result<NextRoot, HubError> {
        let mut root = self.root.clone();
        let mut keys = BTreeMap::new();
        for role in roles {
            let key = SigningKey::from_bytes(&random()?);
            let public = PublicKey::of(&key);
            let slot = match role {
                Role::Root => &mut root.roles.root,
                Role::Policy => &mut root.roles.policy,
                Role::Job => &mut root.roles.job,
                Role::Script => &mut root.roles.script,
            };
            for old in std::mem::take(&mut slot.keyids) {
                root.keys.remove(&old);
            }
            slot.keyids.insert(public.id());
            root.keys.insert(public.id(), public);
            keys.insert(*role, key);
        }
        self.sign_next(root, keys)
    }

    /// The next root with the same keys, which names these authorities and no others.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn root_naming(&self, hub_ca: Vec<Base64>) -> Result<NextRoot, HubError> {
        self.sign_next(Root { hub_ca, ..self.root.clone() }, BTreeMap::new())
    }

    fn sign_next(
        &self,
        mut root: Root,
        keys: BTreeMap<Role, SigningKey>,
    ) -> Result<NextRoot, HubError> {
        root.version += 1;
        root.issued_at = clock::now();
        root.expires_at = clock::after(ROOT_LIFE);
        let mut signers: Vec<&SigningKey> = self.keys.get(&Role::Root).into_iter().collect();
        signers.extend(keys.get(&Role::Root));
        let payload = serde_json::to_vec(&root).map_err(|e| HubError::damaged("root", e))?;
        let envelope = Envelope::sign(PayloadType::Root, payload, &signers);
        Ok(NextRoot { envelope, root, keys })
    }
}

/// A root that is signed but not yet the operator's own.
#[derive(Debug)]
pub struct NextRoot {
    /// To publish.
    pub envelope: Envelope,
    /// What it says.
    pub root: Root,
    keys: BTreeMap<Role, SigningKey>,
}

impl NextRoot {
    /// Makes the new keys the operator's, after the hub has taken the root. The old keys stay
    /// beside them as `ROLE.key.old`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn commit(self, hub: &Path, operator: &mut Operator) -> Result<(), HubError> {
        for (role, key) in self.keys {
            let path = operator.folder.join(format!("{}.key", role.name()));
            let old = operator.folder.join(format!("{}.key.old", role.name()));
            if let Some(key) = operator.keys.get(&role) {
                write_key(&old, key)?;
            }
            write_key(&path, &key)?;
            operator.keys.insert(role, key);
        }
        write_root(hub, &self.envelope)?;
        operator.root = self.root;
        Ok(())
    }
}

/// Writes `root.json`: the very bytes the hub serves, so that one hash pins both.
pub(crate) fn write_root(hub: &Path, envelope: &Envelope) -> Result<(), HubError> {
    let path = hub.join("root.json");
    let bytes = serde_json::to_vec(envelope).map_err(|e| HubError::damaged("root.json", e))?;
    durable::replace(&path, &bytes, Access::Public).map_err(HubError::file(&path))
}

/// Makes a key and writes it.
pub(crate) fn new_key(path: &Path) -> Result<SigningKey, HubError> {
    let key = SigningKey::from_bytes(&random()?);
    write_key(path, &key)?;
    Ok(key)
}

/// Reads a key: 64 hex digits.
pub(crate) fn read_key(path: &Path) -> Result<SigningKey, HubError> {
    let text = fs::read_to_string(path).map_err(HubError::file(path))?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed)
        .map_err(|e| HubError::damaged(path.display().to_string(), e))?;
    Ok(SigningKey::from_bytes(&seed))
}

fn write_key(path: &Path, key: &SigningKey) -> Result<(), HubError> {
    let text = format!("{}\n", hex::encode(key.to_bytes()));
    durable::replace(path, text.as_bytes(), Access::Private).map_err(HubError::file(path))
}

/// A random UUID (version 4) of 16 random bytes.
fn uuid(mut raw: [u8; 16]) -> String {
    raw[6] = (raw[6] & 0x0f) | 0x40;
    raw[8] = (raw[8] & 0x3f) | 0x80;
    let text = hex::encode(raw);
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}
