//! Aligned columns. Every cell is made harmless here, so that no caller can forget it.

use comfy_table::{ContentArrangement, Table as Grid, presets::NOTHING};

use super::escape::clean;

/// What a cell says of its matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Warn,
    Bad,
}

impl Tone {
    pub(crate) fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// One cell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// A cell in a tone.
pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Cell {
    Cell { text: text.into(), tone }
}

// The grid measures text, so colours cannot be in it. These characters have no width, and `clean`
// lets none of them through from outside; after the layout they become colours, or nothing.
const MARKS: [(char, &str); 4] = [
    ('\u{2061}', "\x1b[32m"),
    ('\u{2062}', "\x1b[33m"),
    ('\u{2063}', "\x1b[31m"),
    (END, "\x1b[0m"),
];
const END: char = '\u{2064}';

fn marked(cell: &Cell) -> String {
    let text = clean(&cell.text);
    let mark = match cell.tone {
        Tone::Plain => return text.into_owned(),
        Tone::Good => '\u{2061}',
        Tone::Warn => '\u{2062}',
        Tone::Bad => '\u{2063}',
    };
    format!("{mark}{text}{END}")
}

fn paint(text: &str, color: bool) -> String {
    MARKS.iter().fold(text.to_owned(), |text, (mark, code)| {
        text.replace(*mark, if color { code } else { "" })
    })
}

/// One piece of text in a tone, for a sentence.
pub(crate) fn word(text: &str, tone: Tone, color: bool) -> String {
    paint(&marked(&toned(text, tone)), color)
}

/// Rows under headings.
pub(crate) struct Table {
    grid: Grid,
}

impl Table {
    /// Headings, in capitals by custom.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Self::bare();
        table.grid.set_header(headings.iter().copied());
        table
    }

    /// Names and values.
    pub(crate) fn bare() -> Self {
        let mut grid = Grid::new();
        grid.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        Self { grid }
    }

    #[expect(clippy::needless_pass_by_value, reason = "rows are written where they are made")]
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.grid.add_row(cells.iter().map(marked));
    }

    /// A name and its value.
    pub(crate) fn pair(&mut self, name: &str, value: impl Into<Cell>) {
        self.row([name.into(), value.into()]);
    }

    /// The same, unless there is none.
    pub(crate) fn pair_if(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.pair(name, value);
        }
    }

    /// The lines, each ended by LF.
    pub(crate) fn render(mut self, color: bool) -> String {
        for column in self.grid.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines = self.grid.lines().map(|line| format!("{}\n", paint(&line, color).trim_end()));
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_with_and_without_colour() {
        let table = || {
            let mut table = Table::new(&["JOB", "STATE", "X"]);
            table.row(["job-1".into(), toned("ok", Tone::Good), "1".into()]);
            table.row(["漢".into(), toned("failed", Tone::Bad), "2".into()]);
            table
        };
        let plain = "JOB    STATE   X\njob-1  ok      1\n漢     failed  2\n";
        assert_eq!(table().render(false), plain);
        let color = table().render(true);
        assert!(color.contains("\x1b[32mok\x1b[0m      1"), "{color:?}");
    }

    #[test]
    fn a_cell_cannot_paint_or_break_its_row() {
        let mut table = Table::bare();
        table.pair("name", "a\x1b[31m\n\u{2063}b");
        assert_eq!(table.render(true), "name  a\\u{1b}[31m\\n\\u{2063}b\n");
    }
}
