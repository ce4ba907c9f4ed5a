//! `joblet init`: make what is missing, keep what exists, say which.
//!
//! The administrator's client file is the user's own: one that exists and does not know this daemon is never
//! touched. Ours is then written into the base directory, and said so.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};
use joblet::{
    config::{Config, Overrides, default_file},
    host::Base,
    job::Role,
    limits,
    pki::{self, Validity},
    sys::durable,
};

use super::{InitFlags, base_flag, cert, say};

pub(super) fn run(root: &Path, flags: &InitFlags) -> Result<()> {
    let base = Base::create(root)?;
    let _alone = base.set_up_alone()?;
    let config = make_config(&base, flags.listen)?;
    let made = pki::make(
        &base.pki(),
        &base.instance().to_string(),
        [config.server.listen.ip()],
        SystemTime::now(),
    )?;
    told("authority", &base.pki().join("ca.pem"), made.authority);
    told(
        "server certificate",
        &base.pki().join("server.pem"),
        made.server,
    );
    make_client_file(&base, &config, flags.client_config.as_deref())?;
    say(&format!(
        "next: joblet serve{}",
        base_flag(base.root()).display()
    ));
    Ok(())
}

fn told(what: &str, path: &Path, is_new: bool) {
    let verb = if is_new { "made" } else { "kept" };
    say(&format!("{verb} {what} {}", path.display()));
}

/// Writes the configuration file when there is none, and reads whichever is there.
fn make_config(base: &Base, listen: Option<SocketAddr>) -> Result<Config> {
    let path = base.config_file();
    let is_new = !path.exists();
    if is_new {
        let listen = free_port(listen.unwrap_or(Config::default().server.listen))?;
        let text = default_file(listen);
        durable::replace(&path, text.as_bytes())
            .with_context(|| format!("write {}", path.display()))?;
    }
    // What the file says counts: a variable of today's environment must not end up in client files.
    let config = Config::load(&path, &Overrides::default())?;
    told("configuration", &path, is_new);
    match listen {
        Some(wanted) if wanted.port() != 0 && wanted != config.server.listen => {
            let found = config.server.listen;
            say(&format!(
                "the configuration listens on {found}, not on {wanted}; change server.listen there"
            ));
        }
        _ => {}
    }
    Ok(config)
}

/// Picks a free port when `listen` asks for any.
fn free_port(listen: SocketAddr) -> Result<SocketAddr> {
    if listen.port() != 0 {
        return Ok(listen);
    }
    let socket =
        UdpSocket::bind(listen).with_context(|| format!("find a free port for {listen}"))?;
    Ok(socket.local_addr()?)
}

fn make_client_file(base: &Base, config: &Config, asked: Option<&Path>) -> Result<()> {
    let authority = pki::load_authority(&base.pki())?;
    let wanted = asked.map_or_else(default_client_file, |path| Ok(path.to_owned()))?;
    let is_ours = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        pki::names_authority(&text, authority.certificate_pem())
    };
    if is_ours(&wanted) {
        told("client file", &wanted, false);
        return Ok(());
    }
    // A file in our own directory with another authority is what an earlier one of ours has left.
    let spare = base.root().join("rnx-config.yml");
    let is_foreign = wanted.exists() && wanted != spare;
    let path = if is_foreign { spare } else { wanted.clone() };
    let is_new = !is_ours(&path);
    if is_new {
        let identity = authority.issue(
            Role::Admin,
            "admin",
            Validity::days(SystemTime::now(), limits::AUTHORITY_DAYS),
        )?;
        let address = config.server.local_address().to_string();
        let file = cert::client_file(base, &authority, "default", &address, &identity);
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            durable::make_private_dir(parent)
                .with_context(|| format!("make {}", parent.display()))?;
        }
        durable::replace(&path, file.as_bytes())
            .with_context(|| format!("write {}", path.display()))?;
    }
    told("client file", &path, is_new);
    if is_foreign {
        say(&format!(
            "kept {} as it is: it does not know this daemon; use rnx --config {}, or copy its node over",
            wanted.display(),
            path.display()
        ));
    } else if is_new && config.server.listen.ip().is_unspecified() {
        say("hint: for clients on other machines put this machine's name into `address` of a copy");
    }
    Ok(())
}

fn default_client_file() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home =
        home.context("HOME is not set; say where the client file goes with --client-config FILE")?;
    Ok(Path::new(&home).join(".rnx/rnx-config.yml"))
}
