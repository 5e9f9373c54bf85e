//! `completions` and `man`: what a package installs beside the program.

use std::{fs::File, io::Write as _, path::Path};

use clap_complete::Shell;

use crate::{
    Exit, Failure,
    run::{Outcome, Session},
};

pub(crate) fn completions(
    session: &mut Session<'_>,
    mut cli: clap::Command,
    shell: Shell,
) -> Outcome {
    let name = cli.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli, name.clone(), &mut script);
    if shell == Shell::Bash {
        script = one_label(&script, &name);
    }
    session.io.print(&script)?;
    Ok(Exit::Done)
}

/// The generator spells a dash in the program's name in two ways, and of a script that looks for
/// one and sets the other nothing but the first word completes.
fn one_label(script: &[u8], name: &str) -> Vec<u8> {
    let (set, label) = (name.replace('-', "__"), name.replace('-', "__subcmd__"));
    String::from_utf8_lossy(script).replace(&label, &set).into_bytes()
}

pub(crate) fn man(session: &mut Session<'_>, mut cli: clap::Command, dir: &Path) -> Outcome {
    cli.build();
    let mut pages = Vec::new();
    collect(&cli, &mut pages);
    for (name, page) in &pages {
        let path = dir.join(name);
        let written = File::create(&path).and_then(|mut file| file.write_all(page));
        written.map_err(|error| Failure::file("write", &path, &error))?;
    }
    let text = format!("{} pages in {}\n", pages.len(), dir.display());
    session.io.print(text.as_bytes())?;
    Ok(Exit::Done)
}

/// A page a command, `jtntctl-jobs-list.1`.
fn collect(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) {
    let man = clap_mangen::Man::new(command.clone());
    let mut page = Vec::new();
    // Writing to memory cannot fail.
    if man.render(&mut page).is_ok() {
        pages.push((man.get_filename(), page));
    }
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        collect(sub, pages);
    }
}
