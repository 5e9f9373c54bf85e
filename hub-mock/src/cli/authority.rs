//! `ca`: from one certificate authority to the next, a step at a time. What agents believe is signed
//! by the root of roles; the hub only issues.

use super::{Desk, Verdict, args::CaCommand, output::table};
use crate::{
    authorities::{AuthorityView, Step},
    control::{Turn, Version},
    error::HubError,
};

const PATH: &str = "/control/v1/authorities";

pub(super) async fn run(desk: &Desk<'_>, command: CaCommand) -> Result<Verdict, HubError> {
    match command {
        CaCommand::Show => show(desk, &desk.client.get::<Vec<_>>(PATH).await?),
        CaCommand::Next => {
            let all: Vec<AuthorityView> = turn(desk, Step::Next).await?;
            name(desk, &all).await?;
            show(desk, &all)
        }
        CaCommand::Switch => show(desk, &turn(desk, Step::Switch).await?),
        CaCommand::Retire => {
            let all: Vec<AuthorityView> = desk.client.get(PATH).await?;
            let left: Vec<_> = all.into_iter().filter(|ca| ca.issues).collect();
            // First the root: whoever hears of it in time renews with what still counts here.
            name(desk, &left).await?;
            show(desk, &turn(desk, Step::Retire).await?)
        }
    }
}

async fn turn(desk: &Desk<'_>, step: Step) -> Result<Vec<AuthorityView>, HubError> {
    desk.client.post(PATH, &Turn { step }).await
}

/// Signs and publishes a root that names these and no others.
async fn name(desk: &Desk<'_>, all: &[AuthorityView]) -> Result<(), HubError> {
    let mut operator = desk.operator()?;
    let next = operator.root_naming(all.iter().map(|ca| ca.certificate.clone()).collect())?;
    let _: Version = desk.client.post("/control/v1/roots", &next.envelope).await?;
    next.commit(&desk.dir, &mut operator)
}

fn show(desk: &Desk<'_>, all: &[AuthorityView]) -> Result<Verdict, HubError> {
    desk.output.show(&all, || {
        let row = |ca: &AuthorityView| {
            let does = if ca.issues { "issues" } else { "counts" };
            vec![ca.number.to_string(), does.to_owned(), ca.sha256.to_string()]
        };
        table(&["CA", "STANDING", "SHA-256"], &all.iter().map(row).collect::<Vec<_>>())
    })
}
