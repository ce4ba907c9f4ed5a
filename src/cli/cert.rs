//! `joblet cert issue`: a certificate for one more client.

use std::{path::Path, time::SystemTime};

use anyhow::{Context, Result, bail};
use joblet::{
    config::Config,
    host::Base,
    pki::{self, Authority, ClientNode, Validity},
    sys::durable,
};

use super::{IssueFlags, give, overrides, say};

pub(super) fn issue(base: &Path, flags: &IssueFlags) -> Result<()> {
    let base = Base::open(base)?;
    pki::check_node_name(&flags.node)?;
    let address = match &flags.address {
        Some(address) => address.clone(),
        None => Config::load(&base.config_file(), &overrides())?
            .server
            .local_address()
            .to_string(),
    };
    pki::check_address(&address)?;
    let authority = pki::load_authority(&base.pki())?;
    let validity = Validity::days(SystemTime::now(), flags.days);
    let identity = authority.issue(flags.role, &flags.name, validity)?;
    let file = client_file(&base, &authority, &flags.node, &address, &identity);
    let Some(out) = &flags.out else {
        return give(file.as_bytes());
    };
    if out.exists() {
        bail!(
            "{} exists and is not replaced; remove it or choose another name",
            out.display()
        );
    }
    durable::replace(out, file.as_bytes()).with_context(|| format!("write {}", out.display()))?;
    say(&format!(
        "made {}: {} as {}, {} days",
        out.display(),
        flags.name,
        flags.role,
        flags.days
    ));
    Ok(())
}

/// The client file of one identity at the daemon of `base`.
pub(super) fn client_file(
    base: &Base,
    authority: &Authority,
    node: &str,
    address: &str,
    identity: &pki::Identity,
) -> String {
    let node_id = base.instance().to_string();
    let authority_pem = authority.certificate_pem();
    ClientNode {
        name: node,
        address,
        node_id: &node_id,
        identity,
        authority_pem,
    }
    .to_file()
}
