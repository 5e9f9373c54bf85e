//! The files that a pattern describes at this moment: a kernel knows files and trees only.

use std::{fs, path::PathBuf};

use crate::domain::policy::{Area, Shape, pattern::Pattern};

/// The most that is looked at for one pattern; what lies beyond stays closed.
const MOST_LOOKED_AT: usize = 20_000;
/// The most that one pattern opens.
const MOST_FOUND: usize = 1_000;

/// The area itself, or one for each file that its pattern describes. Links are not followed.
pub(super) fn expand(area: &Area) -> Vec<Area> {
    let Shape::Glob(text) = &area.shape else { return vec![area.clone()] };
    let Ok(pattern) = Pattern::parse(text) else { return Vec::new() };
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(&area.path)];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            looked_at += 1;
            if looked_at > MOST_LOOKED_AT || found.len() >= MOST_FOUND {
                return found;
            }
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            if kind.is_dir() {
                folders.push(path);
            } else if let Some(path) = path.to_str().filter(|path| pattern.matches(path)) {
                found.push(Area { path: path.to_owned(), shape: Shape::One, ..area.clone() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use jtnt_proto::policy::Access;

    #[test]
    fn a_pattern_becomes_the_files_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b.conf")).unwrap();
        for file in ["x.conf", "x.txt", "a/y.conf"] {
            fs::File::create(root.join(file)).unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        let found = |rest: &str| {
            let glob = format!("{}/{rest}", root.display());
            let area = Area {
                path: root.to_str().unwrap().to_owned(),
                shape: Shape::Glob(glob),
                access: [Access::Read].into(),
            };
            let mut paths: Vec<_> = expand(&area).into_iter().map(|a| a.path).collect();
            paths.sort();
            paths
        };
        let in_root = |name: &str| root.join(name).to_str().unwrap().to_owned();
        assert_eq!(found("*.conf"), [in_root("x.conf")], "a folder is no file");
        assert_eq!(found("**/*.conf"), [in_root("a/y.conf"), in_root("x.conf")]);
        assert_eq!(found("link/*"), [] as [&str; 0]);
    }
}
