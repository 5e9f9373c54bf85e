//! The proof that one line stands in an audit log, as a file that needs neither log nor agent (C2SP
//! tlog-proof): the line, its place, and a checkpoint that others have seen.
//!
//! ```text
//! c2sp.org/tlog-proof@v1
//! extra eyJ0aW1lc3RhbXAiOi…
//! index 41
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
//!
//! jtnt-audit/0e64…/5f1c…
//! …
//! ```

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    audit::{MAX_LINE_BYTES, SealedLine, leaf_hash},
    audit_verify::{Finding, Flaw, Summary, Verdict},
    bytes::{Hash, from_base64, to_base64},
    checkpoint::{self, Note},
    key::PublicKey,
    merkle::{self, MAX_PROOF},
};

/// The longest proof: a line in base64, its hashes, and a checkpoint.
pub const MAX_BYTES: usize = MAX_LINE_BYTES / 3 * 4 + MAX_PROOF * 45 + checkpoint::MAX_BYTES + 256;

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// What a proof file says; nothing of it is believed before [`Proof::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The line without its newline.
    pub line: Vec<u8>,
    /// Its place, which is its `seq`.
    pub index: u64,
    /// The hashes from the line up to the root (RFC 6962, 2.1.1).
    pub hashes: Vec<Hash>,
    /// The checkpoint with its signatures.
    pub note: String,
}

impl Proof {
    /// The file.
    #[must_use]
    pub fn text(&self) -> String {
        let hashes: String =
            self.hashes.iter().map(|hash| format!("{}\n", to_base64(&hash.0))).collect();
        let (extra, index) = (STANDARD.encode(&self.line), self.index);
        format!("{HEADER}\nextra {extra}\nindex {index}\n{hashes}\n{}", self.note)
    }

    /// Takes a file apart.
    ///
    /// # Errors
    /// When it is not one, in words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_BYTES {
            return Err("it is longer than any proof");
        }
        let (head, note) = text.split_once("\n\n").ok_or("it has no checkpoint")?;
        let mut lines = head.split('\n');
        if lines.next() != Some(HEADER) {
            return Err("it does not begin with c2sp.org/tlog-proof@v1");
        }
        let extra = lines.next().and_then(|line| line.strip_prefix("extra "));
        let line = extra.ok_or("it does not hold the line, which is its extra data")?;
        let line = STANDARD.decode(line).map_err(|_bad| "its extra data is no base64")?;
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        let index = index.and_then(|digits| {
            let index: u64 = digits.parse().ok()?;
            (index.to_string() == digits).then_some(index)
        });
        let index = index.ok_or("it does not say which line it is")?;
        let hashes: Option<Vec<_>> = lines.map(|hash| from_base64(hash).map(Hash)).collect();
        let hashes = hashes.ok_or("a line of it is no hash")?;
        if hashes.len() > MAX_PROOF {
            return Err("it has more hashes than any proof");
        }
        Ok(Self { line, index, hashes, note: note.to_owned() })
    }

    /// Whether the line is in the log that the checkpoint vouches for. `keys`: those of the agent,
    /// one of which must have signed the line, and one the checkpoint. `witnesses`: one of them must
    /// have cosigned it. `file` names the proof in what is found.
    #[must_use]
    pub fn check(
        &self,
        file: &str,
        keys: &[PublicKey],
        witnesses: &[(String, PublicKey)],
    ) -> (Vec<Finding>, Summary) {
        let mut check = Check::of(file);
        match (SealedLine::parse(&self.line), Note::parse(&self.note)) {
            (Ok(line), Ok(note)) => {
                check.place(self, &line, &note);
                check.signatures(&line, &note, keys);
                check.witnesses(&note, witnesses);
            }
            (Err(fault), _) => check.found(Flaw::Malformed, fault.to_string()),
            (_, Err(why)) => check.found(Flaw::Malformed, format!("no checkpoint: {why}")),
        }
        check.end()
    }
}

/// A check under way.
struct Check {
    file: String,
    seq: Option<u64>,
    findings: Vec<Finding>,
    incomplete: bool,
    unknown: Vec<String>,
}

impl Check {
    fn of(file: &str) -> Self {
        let (findings, unknown) = (Vec::new(), Vec::new());
        Self { file: file.to_owned(), seq: None, findings, incomplete: false, unknown }
    }

    fn found(&mut self, verdict: Flaw, message: String) {
        let (file, seq) = (self.file.clone(), self.seq);
        self.findings.push(Finding { verdict, file, line: 1, seq, message });
    }

    fn missing(&mut self, what: &str) {
        self.incomplete = true;
        self.unknown.push(what.to_owned());
    }

    /// The line's place in the tree, and in its own words.
    fn place(&mut self, proof: &Proof, line: &SealedLine<'_>, note: &Note) {
        self.seq = Some(line.line.seq);
        let seen = &note.checkpoint;
        if line.line.seq != proof.index {
            let why = format!("the line says seq {}, the proof {}", line.line.seq, proof.index);
            self.found(Flaw::Fork, why);
        }
        if seen.origin != checkpoint::origin(&line.line.agent_id, seen.log_id()) {
            let why =
                format!("a line of {}, and a checkpoint of {}", line.line.agent_id, seen.origin);
            self.found(Flaw::Fork, why);
        }
        let tree = (seen.size, seen.root);
        if !merkle::is_included(leaf_hash(&proof.line), proof.index, tree, &proof.hashes) {
            let why = format!(
                "the {} lines that the checkpoint vouches for hold no such line",
                seen.size
            );
            self.found(Flaw::Fork, why);
        }
    }

    /// Where the line is in the tree, another key of the same agent may have signed it, and so may the
    /// checkpoint, which tells by which.
    fn signatures(&mut self, line: &SealedLine<'_>, note: &Note, keys: &[PublicKey]) {
        if keys.is_empty() {
            self.missing("whose line this is: no key was given to check it by (UNKNOWN_KEY)");
            return;
        }
        let signed = keys.iter().any(|key| note.is_signed_by(key));
        if !signed && keys.iter().any(|key| note.names(key)) {
            self.found(Flaw::BadSignature, "the key did not sign the checkpoint".to_owned());
        } else if !signed {
            self.missing(
                "whose checkpoint this is: no key that was given signed it; give audit.pub with the \
                 agent's newest key (UNKNOWN_KEY)",
            );
        }
        if keys.iter().any(|key| line.is_signed_by(key)) {
            return;
        }
        if self.findings.is_empty() {
            self.missing(
                "whose line this is: no key that was given signed it; give audit.pub with all keys of \
                 the agent (UNKNOWN_KEY)",
            );
        } else {
            self.found(Flaw::BadSignature, "the key did not sign the line".to_owned());
        }
    }

    fn witnesses(&mut self, note: &Note, witnesses: &[(String, PublicKey)]) {
        if witnesses.is_empty() {
            self.unknown.push(
                "who has seen the checkpoint: no --witness was given to check that by".into(),
            );
        } else if !witnesses.iter().any(|(name, key)| note.cosigned_by(name, key).is_some()) {
            self.missing(
                "whether a witness has seen it: none that was named cosigned the checkpoint",
            );
        }
    }

    fn end(self) -> (Vec<Finding>, Summary) {
        let verdict = match (self.findings.is_empty(), self.incomplete) {
            (false, _) => Verdict::Tampered,
            (true, true) => Verdict::Incomplete,
            (true, false) => Verdict::Ok,
        };
        let (seq, unknown) = (self.seq, self.unknown);
        let summary =
            Summary { verdict, lines: 1, files: 1, first_seq: seq, last_seq: seq, unknown };
        (self.findings, summary)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use serde_json::Map;

    use super::*;
    use crate::{
        audit::{Line, seal},
        checkpoint::{Checkpoint, witness_name},
        merkle::Frontier,
    };

    const AGENT: &str = "0e64f2d0-0000-8000-8000-000000000001";

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn line(seq: u64) -> Vec<u8> {
        let line = Line {
            timestamp: "2026-06-01T00:00:00Z".parse().unwrap(),
            kind: "audit".into(),
            event: "startup".into(),
            agent_id: AGENT.into(),
            job_id: None,
            command: None,
            status: None,
            user: None,
            policy_version: None,
            caller: None,
            origin: None,
            object: None,
            details: Map::new(),
            seq,
            prev: String::new(),
        };
        seal(&line, |text| key(1).sign(text).to_bytes()).unwrap()
    }

    fn witness() -> (String, PublicKey) {
        (witness_name("root"), PublicKey::of(&key(2)))
    }

    /// The proof of line `index` among `size`.
    fn proof(index: u64, size: u64) -> Proof {
        let (mut kept, mut frontier) = (Vec::new(), Frontier::default());
        for seq in 0..size {
            frontier.push(leaf_hash(&line(seq)), |hash| kept.push(hash));
        }
        let origin = checkpoint::origin(AGENT, "log");
        let seen = Checkpoint { origin, size, root: frontier.root() };
        let own = seen.sign(&PublicKey::of(&key(1)), |text| key(1).sign(text).to_bytes());
        let (name, public) = witness();
        let other = seen.cosign(&name, &public, 5, |text| key(2).sign(text).to_bytes());
        let hashes = merkle::inclusion(&kept, index, size).unwrap().unwrap();
        Proof { line: line(index), index, hashes, note: own + &other }
    }

    fn verdict(proof: &Proof) -> (Verdict, Vec<Flaw>) {
        let keys = [PublicKey::of(&key(1))];
        let (findings, summary) = proof.check("p", &keys, &[witness()]);
        (summary.verdict, findings.into_iter().map(|f| f.verdict).collect())
    }

    #[test]
    fn every_line_can_be_proven_and_the_file_says_all_of_it() {
        for size in 1..=9 {
            for index in 0..size {
                let proof = proof(index, size);
                assert_eq!(Proof::parse(&proof.text()).unwrap(), proof);
                assert_eq!(verdict(&proof), (Verdict::Ok, Vec::new()), "{index} of {size}");
            }
        }
    }

    #[test]
    fn a_proof_of_anything_else_is_none() {
        let good = proof(3, 7);
        let forked = |change: &dyn Fn(&mut Proof)| {
            let mut other = good.clone();
            change(&mut other);
            let (verdict, flaws) = verdict(&other);
            assert_eq!(verdict, Verdict::Tampered, "{flaws:?}");
            flaws
        };
        assert_eq!(forked(&|p| p.line = line(4)), [Flaw::Fork, Flaw::Fork]);
        assert_eq!(forked(&|p| p.index = 4), [Flaw::Fork, Flaw::Fork]);
        assert_eq!(forked(&|p| p.hashes[0] = Hash([9; 32])), [Flaw::Fork]);
        assert_eq!(forked(&|p| p.hashes.truncate(1)), [Flaw::Fork]);
        assert_eq!(forked(&|p| p.line.truncate(9)), [Flaw::Malformed]);
        assert_eq!(forked(&|p| p.note.truncate(9)), [Flaw::Malformed]);
        let other = proof(3, 6).note;
        assert_eq!(forked(&|p| p.note.clone_from(&other)), [Flaw::Fork]);
        assert_eq!(
            forked(&|p| p.note = p.note.replacen("\n7\n", "\n8\n", 1)),
            [Flaw::BadSignature],
            "the same proof fits a tree of eight, whose root is another"
        );
        // The name is part of what tells the key.
        let renamed = Proof { note: good.note.replacen("/log\n", "/other\n", 1), ..good.clone() };
        assert_eq!(verdict(&renamed), (Verdict::Incomplete, Vec::new()));
        // A line by nobody's key in a log by nobody's key is not this agent's.
        let line = String::from_utf8(good.line.clone()).unwrap().replacen("startup", "stortup", 1);
        let flaws = forked(&|p| p.line = line.clone().into_bytes());
        assert_eq!(flaws, [Flaw::Fork, Flaw::BadSignature]);
    }

    #[test]
    fn what_is_not_there_to_check_it_by_is_said() {
        let good = proof(3, 7);
        let (key, other) = (PublicKey::of(&key(1)), PublicKey::of(&key(3)));
        let by = |keys: &[PublicKey], witnesses: &[_]| good.check("p", keys, witnesses).1.verdict;
        assert_eq!(by(&[], &[witness()]), Verdict::Incomplete);
        assert_eq!(by(&[other], &[witness()]), Verdict::Incomplete, "perhaps the agent's next key");
        assert_eq!(by(&[other, key], &[witness()]), Verdict::Ok);
        assert_eq!(by(&[key], &[]), Verdict::Ok);
        assert_eq!(by(&[key], &[(witness().0, other)]), Verdict::Incomplete);
    }

    #[test]
    fn what_is_no_proof_is_refused() {
        let good = proof(3, 7).text();
        for bad in [
            String::new(),
            good.replacen("@v1", "@v2", 1),
            good.replacen("extra ", "more ", 1),
            good.replacen("extra ", "extra !", 1),
            good.replacen("index 3", "index 03", 1),
            good.replacen("index 3", "index -3", 1),
            good.replacen("index 3\n", "index 3\nAAAA\n", 1),
            good.replacen(
                "index 3\n",
                &format!("index 3\n{}", format!("{}\n", to_base64(&[0; 32])).repeat(129)),
                1,
            ),
            good.replace("\n\n", "\n"),
            "x".repeat(MAX_BYTES + 1),
        ] {
            assert!(Proof::parse(&bad).is_err(), "{bad}");
        }
    }
}
