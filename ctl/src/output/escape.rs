//! Text that others wrote, made harmless: a job's name or output must not move the cursor, retitle
//! the terminal or turn the line's direction round.

use std::{borrow::Cow, fmt::Write as _};

/// Whether a terminal would act on it, or a reader be misled by it, instead of seeing it.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// `text` with every active character written out as `\n`, `\t`, `\u{1b}`.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_active) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::new(), |mut out, c| {
        push(&mut out, c);
        out
    }))
}

fn push(out: &mut String, c: char) {
    if is_active(c) { out.extend(c.escape_debug()) } else { out.push(c) }
}

/// The same for JSON text, where the active characters that JSON leaves alone become `\uXXXX`.
/// They can only stand inside of strings.
pub(crate) fn clean_json(text: String) -> String {
    if !text.chars().any(|c| is_active(c) && c != '\n') {
        return text;
    }
    text.chars().fold(String::new(), |mut out, c| {
        if is_active(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                write!(out, "\\u{unit:04x}").unwrap_or_default();
            }
        } else {
            out.push(c);
        }
        out
    })
}

/// Makes a byte stream harmless that is cut anywhere, also within a character. Newlines and tabs
/// stay.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    carry: Vec<u8>,
}

impl Stream {
    /// The next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.carry.extend_from_slice(bytes);
        let mut out = String::new();
        let mut kept = 0;
        for chunk in self.carry.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c == '\n' || c == '\t' { out.push(c) } else { push(&mut out, c) }
            }
            let invalid = chunk.invalid();
            let at_end = kept + chunk.valid().len() + invalid.len() == self.carry.len();
            kept += chunk.valid().len();
            if at_end && is_begun(invalid) {
                break;
            }
            invalid.iter().for_each(|byte| write!(out, "\\x{byte:02x}").unwrap_or_default());
            kept += invalid.len();
        }
        self.carry.drain(..kept);
        out
    }

    /// What is left when the stream ends.
    pub(crate) fn finish(&mut self) -> String {
        let left = std::mem::take(&mut self.carry);
        left.iter().map(|byte| format!("\\x{byte:02x}")).collect()
    }
}

/// Whether bytes may yet become a character.
fn is_begun(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_codes_and_direction_marks_are_written_out() {
        assert_eq!(clean("plain é 漢"), "plain é 漢");
        assert_eq!(clean("a\x1b[2Jb\n"), r"a\u{1b}[2Jb\n");
        assert_eq!(clean("x\u{202e}y\u{9b}\u{200b}"), r"x\u{202e}y\u{9b}\u{200b}");
    }

    #[test]
    fn json_stays_json() {
        let text = serde_json::to_string("\u{202e}\u{7f}\x1b\u{e0041}").unwrap();
        let clean = clean_json(text);
        assert!(clean.is_ascii());
        assert_eq!(serde_json::from_str::<String>(&clean).unwrap(), "\u{202e}\u{7f}\x1b\u{e0041}");
    }

    #[test]
    fn a_stream_may_be_cut_within_a_character() {
        let bytes = "é漢\n\x1b".as_bytes();
        let mut stream = Stream::default();
        let text: String = bytes.iter().map(|b| stream.push(&[*b])).collect();
        assert_eq!(text + &stream.finish(), "é漢\n\\u{1b}");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_hex() {
        let mut stream = Stream::default();
        assert_eq!(stream.push(b"a\xff\xfeb\xe2\x82"), r"a\xff\xfeb");
        assert_eq!(stream.finish(), r"\xe2\x82");
    }
}
