//! From bytes to authorised, typed requests, and back.
//!
//! `quic` moves bytes, `tls` says whose they are, `session` reads frames and serves one request a stream,
//! `authorise` decides whether it may, `convert` is where wire types end. This room knows no kernel feature
//! of a job: it asks its shard's [`Handle`] for everything.

pub mod authorise;
mod convert;
mod quic;
mod session;
#[cfg(test)]
mod testing;
mod tls;

use std::{fmt, io, net::UdpSocket, rc::Rc};

use quinn_proto::crypto::rustls::NoInitialCipherSuite;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use self::{
    quic::{Endpoint, Keys, Phase, RequestStream, Transport, Work},
    session::Budget,
};
use crate::{job::ShardIndex, limits, rt, shard::Handle};

pub use quic::{Datagram, ForwardHook, steering};
pub use tls::TlsError;

/// What every shard's front needs, the same for all.
pub struct FrontConfig {
    /// The certificate that vouches for clients.
    pub authority: CertificateDer<'static>,
    /// The server's certificate chain, leaf first.
    pub server_chain: Vec<CertificateDer<'static>>,
    /// The key of the leaf.
    pub server_key: PrivateKeyDer<'static>,
    /// Secret of stateless resets. Must survive a restart: clients of a killed daemon learn by it, at their
    /// next packet, that their connection is gone.
    pub reset_key: [u8; 32],
    /// Secret of address validation tokens, the same on every shard.
    pub token_key: [u8; 32],
}

impl fmt::Debug for FrontConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontConfig").finish_non_exhaustive()
    }
}

/// Why a front cannot serve.
#[derive(Debug, Error)]
pub enum FrontError {
    /// Certificates or key do not fit.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cipher suites lack the one that QUIC begins with.
    #[error("set up TLS for QUIC")]
    Suites(#[from] NoInitialCipherSuite),
    /// The UDP socket failed.
    #[error("serve the UDP socket of shard {shard}")]
    Socket {
        /// Whose.
        shard: ShardIndex,
        /// Why.
        #[source]
        source: io::Error,
    },
}

type Accept = Box<dyn FnMut(RequestStream)>;

/// The QUIC server of one shard. Made and used on that shard's thread.
pub struct Front {
    endpoint: Endpoint<Accept>,
    shard: ShardIndex,
    work: Rc<Work>,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Front {
    /// A front on `socket`, which is number `shard` of the group that [`steering::bind`] made for `shards`.
    /// Requests are served through `handle`; datagrams that belong to another shard go to `forward`, and come
    /// in there by [`FrontControl::deliver`].
    ///
    /// # Errors
    /// [`FrontError`] when the certificates do not fit or the socket cannot be used.
    ///
    /// # Panics
    /// If `shard` is not below `shards`.
    pub fn open(
        socket: UdpSocket,
        shard: ShardIndex,
        shards: usize,
        config: &FrontConfig,
        handle: Handle,
        forward: ForwardHook,
    ) -> Result<Self, FrontError> {
        let work = Work::new();
        let (budget, requests) = (
            Budget::new(limits::REQUEST_BYTES_PER_SHARD_MAX),
            Rc::clone(&work),
        );
        let accept = move |stream| {
            if requests.requests() > limits::REQUESTS_PER_SHARD_MAX {
                drop(rt::spawn(session::turn_away(stream)));
            } else {
                drop(rt::spawn(session::serve(
                    stream,
                    handle.clone(),
                    budget.clone(),
                )));
            }
        };
        Self::with_accept(
            socket,
            (shard, shards),
            config,
            forward,
            work,
            Box::new(accept),
        )
    }

    fn with_accept(
        socket: UdpSocket,
        (shard, shards): (ShardIndex, usize),
        config: &FrontConfig,
        forward: ForwardHook,
        work: Rc<Work>,
        accept: Accept,
    ) -> Result<Self, FrontError> {
        let tls = tls::server_config(config)?;
        let keys = Keys {
            reset: &config.reset_key,
            token: &config.token_key,
        };
        let transport = Transport::new(tls, keys, shard, shards)?;
        let endpoint = Endpoint::new(
            socket,
            (shard, shards),
            transport,
            Rc::clone(&work),
            forward,
            accept,
        )
        .map_err(|source| FrontError::Socket { shard, source })?;
        Ok(Self {
            endpoint,
            shard,
            work,
        })
    }

    /// What steers this front while [`Front::serve`] runs.
    #[must_use]
    pub fn control(&self) -> FrontControl {
        FrontControl {
            work: Rc::clone(&self.work),
        }
    }

    /// Serves until [`FrontControl::close`].
    ///
    /// # Errors
    /// [`FrontError::Socket`].
    ///
    /// # Cancel
    /// Peers are not told; they find out by their idle timeout.
    pub async fn serve(self) -> Result<(), FrontError> {
        let shard = self.shard;
        self.endpoint
            .run()
            .await
            .map_err(|source| FrontError::Socket { shard, source })
    }
}

/// Steers a [`Front`] from elsewhere on its thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FrontControl {
    work: Rc<Work>,
}

impl FrontControl {
    /// Takes a datagram that another shard's [`ForwardHook`] was given. Drops it when too many wait.
    pub fn deliver(&self, datagram: Datagram) {
        self.work.forwarded(datagram);
    }

    /// Refuses new connections from now on. Those that are there may go on.
    pub fn refuse_connections(&self) {
        self.work.advance(Phase::Refusing);
    }

    /// Sends what is written already, tells every peer that the server shuts down, and ends [`Front::serve`].
    /// Sessions end; jobs go on.
    pub fn close(&self) {
        self.work.advance(Phase::Closing);
    }

    /// Requests that are being served.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.work.requests()
    }
}
