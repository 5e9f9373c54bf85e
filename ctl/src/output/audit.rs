//! Audit lines, and what a check of the log found.

use jtnt_proto::{
    admin::v1 as pb,
    audit::Line,
    audit_verify::{Finding as Found, Summary as Sum},
};
use serde::Serialize;

use super::{
    escape::clean,
    table::{Table, Tone, toned, word},
    time as human,
};

/// What stands above lines for people, which come one by one and so have fixed columns.
pub(crate) fn headings() -> String {
    format!("{:>7}  {:<20}  {:<16}  {:<9}  ABOUT\n", "SEQ", "TIME", "EVENT", "STATUS")
}

/// Without these a line says only that something was done or refused.
const DETAILS: [&str; 10] = [
    "phase",
    "action",
    "reason",
    "rule",
    "what",
    "changed",
    "public_key",
    "serial",
    "before",
    "rolled_back",
];

/// A line for people; bytes that are none are shown as they are, made harmless.
pub(crate) fn line(raw: &[u8], color: bool) -> String {
    let Ok(line) = serde_json::from_slice::<Line>(raw) else {
        return format!("{}\n", clean(&String::from_utf8_lossy(raw)));
    };
    let tone = match line.status.as_deref() {
        Some("success") | None => Tone::Plain,
        Some("cancelled") => Tone::Warn,
        Some(_) => Tone::Bad,
    };
    let status = word(&format!("{:<9}", line.status.as_deref().unwrap_or("-")), tone, color);
    let who = line.caller.as_ref().and_then(|c| c.name.clone().or(c.uid.map(|u| u.to_string())));
    let detail = |name: &str| {
        let value = line.details.get(name)?;
        Some(format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
    };
    let details = DETAILS.map(detail);
    let about = [
        line.user.map(|user| format!("user={user}")),
        who.map(|who| format!("caller={who}")),
        line.job_id.map(|id| format!("job={id}")),
        line.object.map(|object| format!("object={object}")),
        line.command,
    ];
    let about = about.into_iter().chain(details).flatten().collect::<Vec<_>>().join("  ");
    let at = human::absolute(line.timestamp);
    let text = format!("{:>7}  {at}  {:<16}", line.seq, clean(&line.event));
    format!("{}\n", format!("{text}  {status}  {}", clean(&about)).trim_end())
}

/// A finding of a check.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    verdict: String,
    file: String,
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    message: String,
}

impl From<pb::Finding> for Finding {
    fn from(f: pb::Finding) -> Self {
        Self { verdict: f.verdict, file: f.file, line: f.line, seq: f.seq, message: f.message }
    }
}

impl From<Found> for Finding {
    fn from(f: Found) -> Self {
        let verdict = f.verdict.name().to_owned();
        Self { verdict, file: f.file, line: f.line, seq: f.seq, message: f.message }
    }
}

/// The JSON of `audit verify`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// OK, TAMPERED or INCOMPLETE.
    pub(crate) verdict: String,
    lines: u64,
    files: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seq: Option<u64>,
    unknown: Vec<String>,
    pub(crate) findings: Vec<Finding>,
    /// Findings beyond those listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) more_findings: u64,
    /// The line that a proof is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    proven: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
pub(super) fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Report {
    /// The most findings a report lists; a log without a true line has one for every line.
    const MAX_FINDINGS: usize = 1_000;

    /// Of a proof of this line.
    pub(crate) fn of_line(raw: &[u8]) -> Self {
        Self { proven: Some(String::from_utf8_lossy(raw).into_owned()), ..Self::default() }
    }

    /// What is wrong with the files themselves.
    pub(crate) fn add_files(&mut self, found: impl Iterator<Item = Finding>) {
        for finding in found {
            "TAMPERED".clone_into(&mut self.verdict);
            self.add(finding);
        }
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        if self.findings.len() < Self::MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }

    pub(crate) fn conclude(&mut self, s: pb::VerifySummary) {
        self.verdict = s.verdict;
        (self.lines, self.files) = (s.lines, s.files);
        (self.first_seq, self.last_seq) = (s.first_seq, s.last_seq);
        self.unknown = s.unknown;
    }

    pub(crate) fn conclude_here(&mut self, s: Sum) {
        self.verdict = s.verdict.name().to_owned();
        (self.lines, self.files) = (s.lines, s.files);
        (self.first_seq, self.last_seq) = (s.first_seq, s.last_seq);
        self.unknown = s.unknown;
    }

    /// The report for people.
    pub(crate) fn text(&self, color: bool) -> String {
        let mut out = String::new();
        if !self.findings.is_empty() {
            let mut table = Table::new(&["VERDICT", "FILE", "LINE", "SEQ", "WHAT"]);
            for f in &self.findings {
                let seq = f.seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
                table.row([
                    toned(&f.verdict, Tone::Bad),
                    f.file.as_str().into(),
                    f.line.to_string().into(),
                    seq.into(),
                    f.message.as_str().into(),
                ]);
            }
            out.push_str(&table.render(color));
            if self.more_findings > 0 {
                out.push_str(&format!("and {} more\n", self.more_findings));
            }
            out.push('\n');
        }
        let tone = match self.verdict.as_str() {
            "OK" => Tone::Good,
            "INCOMPLETE" => Tone::Warn,
            _ => Tone::Bad,
        };
        let seqs = match (self.first_seq, self.last_seq) {
            (Some(first), Some(_)) if self.proven.is_some() => format!(", seq {first}"),
            (Some(first), Some(last)) => format!(", seq {first} to {last}"),
            _ => String::new(),
        };
        let (lines, files) = (self.lines, self.files);
        let verdict = word(&self.verdict, tone, color);
        let size = format!("{} in {}", human::count(lines, "line"), human::count(files, "file"));
        match &self.proven {
            Some(raw) => {
                out.push_str(&format!("{}{}", headings(), line(raw.as_bytes(), color)));
                out.push_str(&format!("{verdict}: a proof of one line{seqs}\n"));
            }
            None => out.push_str(&format!("{verdict}: {size}{seqs}\n")),
        }
        for unknown in &self.unknown {
            out.push_str(&format!("not known: {}\n", clean(unknown)));
        }
        out
    }
}

/// The JSON of `audit prove`.
#[derive(Debug, Serialize)]
pub(crate) struct Proven<'a> {
    pub(crate) seq: u64,
    pub(crate) proof: &'a str,
}

/// The JSON of `audit export`.
#[derive(Debug, Serialize)]
pub(crate) struct Export {
    pub(crate) out: String,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Export {
    pub(crate) fn text(&self) -> String {
        let Self { out, files, bytes } = self;
        let (out, files, size) = (clean(out), human::count(*files, "file"), human::bytes(*bytes));
        format!("{files}, {size}, in {out}\ncheck it with: jtntctl audit verify {out}\n")
    }
}

/// The JSON of `audit rotate-key`.
#[derive(Debug, Serialize)]
pub(crate) struct Rotated<'a> {
    seq: u64,
    public_key: &'a str,
}

impl<'a> From<&'a pb::RotateKeyResponse> for Rotated<'a> {
    fn from(r: &'a pb::RotateKeyResponse) -> Self {
        Self { seq: r.seq, public_key: &r.public_key }
    }
}

pub(crate) fn rotated(r: &pb::RotateKeyResponse) -> String {
    let (seq, key) = (r.seq, clean(&r.public_key));
    format!("{key} signs the log from the line after seq {seq} on\n")
}

/// The JSON of `audit clean`.
#[derive(Debug, Serialize)]
pub(crate) struct Cleaned<'a> {
    removed: &'a [String],
    bytes: u64,
    /// Old enough, and still needed: the hub has not seen them, or does not hold them.
    kept: &'a [String],
}

impl<'a> From<&'a pb::CleanLogResponse> for Cleaned<'a> {
    fn from(c: &'a pb::CleanLogResponse) -> Self {
        Self { removed: &c.removed, bytes: c.bytes, kept: &c.kept }
    }
}

pub(crate) fn cleaned(c: &pb::CleanLogResponse) -> String {
    if c.removed.is_empty() && c.kept.is_empty() {
        return "nothing is older than the retention\n".to_owned();
    }
    let named = |verb: &str, names: &[String]| -> String {
        names.iter().map(|name| format!("{verb} {}\n", clean(name))).collect()
    };
    let (removed, kept) = (named("removed", &c.removed), named("kept", &c.kept));
    let why = if c.kept.is_empty() {
        ""
    } else {
        "what is kept goes once the hub has seen it, and holds it where audit_profile asks for that\n"
    };
    format!("{removed}{kept}{} freed\n{why}", human::bytes(c.bytes))
}
