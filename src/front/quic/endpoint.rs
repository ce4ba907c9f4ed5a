//! The task that drives all connections of one shard.
//!
//! A turn: receive what is there, let due timers fire, hand events to connections, give the tasks they woke
//! their turn, then send, each connection at most a burst. Sending comes after the tasks so that a reply
//! travels with the acknowledgement of its request. With nothing left to do it waits for the socket, the
//! earliest timer, or work from a task.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    rc::Rc,
    time::Instant,
};

use bytes::BytesMut;
use proto_rkyv::code;
use quinn_proto::{ConnectionHandle, DatagramEvent, EcnCodepoint, Incoming, Transmit};

use super::{
    connection::{Link, Notice},
    deadlines::Deadlines,
    socket::Socket,
    steering,
    stream::{RecvHalf, SendHalf},
    transport::Transport,
    wait::{Turns, Wait},
    work::{Phase, Work},
};
use crate::{
    front::tls,
    job::{Peer, ShardIndex},
    limits, rt,
};

/// One received datagram.
#[derive(Debug)]
pub struct Datagram {
    pub(super) remote: SocketAddr,
    pub(super) local_ip: Option<IpAddr>,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) bytes: BytesMut,
}

/// Takes a datagram that landed on this shard to the one it belongs to. May drop it when there is no room.
pub type ForwardHook = Rc<dyn Fn(ShardIndex, Datagram)>;

/// A stream that a peer has opened, with who and when.
#[derive(Debug)]
pub(crate) struct RequestStream {
    /// The authenticated other side.
    pub(crate) peer: Rc<Peer>,
    /// To the peer.
    pub(crate) send: SendHalf,
    /// From the peer.
    pub(crate) recv: RecvHalf,
    /// When its first packet was handled.
    pub(crate) arrived: Instant,
}

/// How far a connection is.
enum Progress {
    Handshake { until: Instant },
    Open { peer: Rc<Peer> },
    Over,
}

/// How far the endpoint is with saying goodbye, each step bounded in turns of its loop: peers that never stop
/// sending do not keep it.
enum Ending {
    NotYet,
    Flush { turns_left: u32 },
    Tell { turns_left: u32 },
}

struct Entry {
    link: Rc<Link>,
    remote: SocketAddr,
    progress: Progress,
}

/// All connections of one shard.
pub(crate) struct Endpoint<A> {
    shard: ShardIndex,
    shards: usize,
    quic: quinn_proto::Endpoint,
    transport: Transport,
    socket: Socket,
    connections: HashMap<ConnectionHandle, Entry>,
    handshakes: usize,
    deadlines: Deadlines,
    work: Rc<Work>,
    forward: ForwardHook,
    accept: A,
    packet: Vec<u8>,
    links: Vec<Rc<Link>>,
    wait: Wait,
}

impl<A> std::fmt::Debug for Endpoint<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("shard", &self.shard)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl<A: FnMut(RequestStream)> Endpoint<A> {
    /// An endpoint on `udp`, one of the group that [`steering::bind`] made. `accept` gets every stream that an
    /// authenticated peer opens.
    ///
    /// # Errors
    /// When the socket refuses an option or cannot be polled.
    pub(crate) fn new(
        udp: UdpSocket,
        (shard, shards): (ShardIndex, usize),
        transport: Transport,
        work: Rc<Work>,
        forward: ForwardHook,
        accept: A,
    ) -> io::Result<Self> {
        let wait = Wait::new(rt::Ready::new(udp.as_fd().try_clone_to_owned()?)?);
        let socket = Socket::new(udp)?;
        let server = Some(transport.network.clone());
        let quic = quinn_proto::Endpoint::new(
            transport.endpoint.clone(),
            server,
            !socket.may_fragment(),
            None,
        );
        Ok(Self {
            shard,
            shards,
            quic,
            transport,
            socket,
            connections: HashMap::new(),
            handshakes: 0,
            deadlines: Deadlines::default(),
            work,
            forward,
            accept,
            packet: Vec::new(),
            links: Vec::new(),
            wait,
        })
    }

    /// Serves until [`Work::advance`] says [`Phase::Closing`] and every peer has been told.
    ///
    /// # Errors
    /// When the socket itself fails.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        let mut turns = Turns::default();
        let mut ending = Ending::NotYet;
        loop {
            self.socket.flush();
            let has_more_in = self.receive()?;
            self.expire(rt::now());
            if self.dispatch() {
                Wait::let_others_run().await;
            }
            self.transmit();
            let is_idle = !has_more_in && self.work.dirty_count() == 0;
            if self.work.phase() == Phase::Closing {
                ending = match ending {
                    // What was written before still goes out; nothing after this does.
                    Ending::NotYet => Ending::Flush {
                        turns_left: limits::CLOSING_TURNS_MAX,
                    },
                    Ending::Flush { turns_left } if is_idle || turns_left == 0 => {
                        self.close_all();
                        Ending::Tell {
                            turns_left: limits::CLOSING_TURNS_MAX,
                        }
                    }
                    Ending::Flush { turns_left } => Ending::Flush {
                        turns_left: turns_left - 1,
                    },
                    Ending::Tell { turns_left } if is_idle || turns_left == 0 => return Ok(()),
                    Ending::Tell { turns_left } => Ending::Tell {
                        turns_left: turns_left - 1,
                    },
                };
            }
            if is_idle || self.socket.is_blocked() {
                turns = Turns::default();
                self.wait
                    .for_news(&self.work, self.deadlines.next(), self.socket.is_blocked())
                    .await?;
            } else {
                turns.next(&self.wait).await?;
            }
        }
    }

    /// Takes in a bounded amount; true when there may be more.
    fn receive(&mut self) -> io::Result<bool> {
        while let Some(datagram) = self.work.pop_forwarded() {
            self.on_datagram(rt::now(), datagram);
        }
        let mut batch = Vec::new();
        for _ in 0..limits::RECEIVE_BURST {
            let has_more = self.socket.receive(|datagram| batch.push(datagram))?;
            let now = rt::now();
            for datagram in batch.drain(..) {
                match steering::shard_of(&datagram.bytes, self.shards) {
                    Some(owner) if owner != self.shard => (self.forward)(owner, detached(datagram)),
                    Some(_) | None => self.on_datagram(now, datagram),
                }
            }
            if !has_more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn on_datagram(&mut self, now: Instant, datagram: Datagram) {
        let Datagram {
            remote,
            local_ip,
            ecn,
            bytes,
        } = datagram;
        self.packet.clear();
        match self
            .quic
            .handle(now, remote, local_ip, ecn, bytes, &mut self.packet)
        {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(entry) = self.connections.get(&handle) {
                    entry.link.connection().handle_event(event);
                    entry.link.mark_dirty();
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.on_incoming(now, incoming),
            Some(DatagramEvent::Response(transmit)) => self.respond(transmit),
            None => {}
        }
    }

    fn on_incoming(&mut self, now: Instant, incoming: Incoming) {
        let is_full = self.handshakes >= limits::HANDSHAKES_MAX
            || self.connections.len() >= limits::CONNECTIONS_PER_SHARD_MAX
            || self.work.phase() != Phase::Serving;
        if is_full {
            let transmit = self.quic.refuse(incoming, &mut self.packet);
            return self.respond(transmit);
        }
        if self.handshakes >= limits::HANDSHAKES_BEFORE_RETRY && incoming.may_retry() {
            if let Ok(transmit) = self.quic.retry(incoming, &mut self.packet) {
                self.respond(transmit);
            }
            return;
        }
        let remote = incoming.remote_address();
        let config = self.transport.for_peer(remote.ip());
        match self
            .quic
            .accept(incoming, now, &mut self.packet, Some(config))
        {
            Ok((handle, connection)) => {
                let link = Link::new(handle, connection, Rc::clone(&self.work));
                link.mark_dirty();
                self.handshakes += 1;
                let progress = Progress::Handshake {
                    until: now + limits::HANDSHAKE_TIMEOUT,
                };
                self.connections.insert(
                    handle,
                    Entry {
                        link,
                        remote,
                        progress,
                    },
                );
            }
            Err(error) => {
                tracing::debug!(shard = self.shard, %remote, cause = %error.cause, "connection attempt failed");
                if let Some(transmit) = error.response {
                    self.respond(transmit);
                }
            }
        }
    }

    /// Sends a datagram that belongs to no connection. When the socket is full it is dropped: the peer repeats.
    fn respond(&mut self, transmit: Transmit) {
        if !self.socket.is_blocked() {
            self.socket.send(transmit, &self.packet);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(handle) = self.deadlines.pop_due(now) {
            let Some(entry) = self.connections.get(&handle) else {
                continue;
            };
            if matches!(entry.progress, Progress::Handshake { until } if until <= now)
                && !entry.link.is_lost()
            {
                entry.link.close(
                    now,
                    code::CONNECTION_TOO_SLOW,
                    "the handshake took too long",
                );
            }
            entry.link.connection().handle_timeout(now);
            entry.link.mark_dirty();
        }
    }

    /// Acts on the events of all dirty connections. True when a task may have been woken or started.
    fn dispatch(&mut self) -> bool {
        let mut links = std::mem::take(&mut self.links);
        self.work.peek_all(&mut links);
        let has_any = !links.is_empty();
        for link in links.drain(..) {
            self.service(&link);
        }
        self.links = links;
        has_any
    }

    fn service(&mut self, link: &Rc<Link>) {
        self.exchange_endpoint_events(link);
        while let Some(notice) = link.next_notice() {
            match notice {
                Notice::Connected => self.on_connected(link),
                Notice::Lost(reason) => {
                    if let Some(entry) = self.connections.get_mut(&link.handle()) {
                        tracing::debug!(shard = self.shard, remote = %entry.remote, %reason, "connection is over");
                        end(&mut entry.progress, &mut self.handshakes);
                    }
                }
                Notice::Opened => self.on_opened(link),
            }
        }
    }

    fn exchange_endpoint_events(&mut self, link: &Rc<Link>) {
        loop {
            let event = link.connection().poll_endpoint_events();
            let Some(event) = event else { return };
            if let Some(answer) = self.quic.handle_event(link.handle(), event) {
                link.connection().handle_event(answer);
            }
        }
    }

    /// Reads who the peer is, once. One that is nobody is told so and never gets a stream.
    fn on_connected(&mut self, link: &Rc<Link>) {
        let Some(entry) = self.connections.get_mut(&link.handle()) else {
            return;
        };
        end(&mut entry.progress, &mut self.handshakes);
        let identity = link.connection().crypto_session().peer_identity();
        match tls::peer_of(identity) {
            Ok(peer) => {
                tracing::debug!(shard = self.shard, remote = %entry.remote, peer = %peer.name, role = %peer.role, "connected");
                entry.progress = Progress::Open {
                    peer: Rc::new(peer),
                };
            }
            Err(error) => {
                let reason = error.reason();
                tracing::info!(shard = self.shard, remote = %entry.remote, %reason, "certificate refused");
                link.close(rt::now(), code::CONNECTION_NOT_PERMITTED, &reason);
            }
        }
    }

    fn on_opened(&mut self, link: &Rc<Link>) {
        let Some(Entry {
            progress: Progress::Open { peer },
            ..
        }) = self.connections.get(&link.handle())
        else {
            return;
        };
        let arrived = rt::now();
        while let Some(id) = link.accept() {
            (self.accept)(RequestStream {
                peer: Rc::clone(peer),
                send: SendHalf::new(Rc::clone(link), id),
                recv: RecvHalf::new(Rc::clone(link), id),
                arrived,
            });
        }
    }

    /// Sends for every connection that is dirty now, each at most a burst; who has more goes to the back.
    fn transmit(&mut self) {
        for _ in 0..self.work.dirty_count() {
            if self.socket.is_blocked() {
                return;
            }
            let Some(link) = self.work.pop() else { return };
            link.mark_clean();
            self.service(&link);
            if self.transmit_burst(&link) {
                link.mark_dirty();
            }
            self.service(&link);
            self.settle(&link);
        }
    }

    /// True when the connection may have more to send.
    fn transmit_burst(&mut self, link: &Rc<Link>) -> bool {
        let now = rt::now();
        for _ in 0..limits::SEND_BURST {
            self.packet.clear();
            let mut connection = link.connection();
            let segments = self.socket.segments(connection.current_mtu());
            let Some(transmit) = connection.poll_transmit(now, segments, &mut self.packet) else {
                return false;
            };
            self.socket.send(transmit, &self.packet);
            if self.socket.is_blocked() {
                return true;
            }
        }
        true
    }

    /// Arms the connection's timer, or forgets the connection when it is gone for good.
    fn settle(&mut self, link: &Rc<Link>) {
        let handle = link.handle();
        let Some(entry) = self.connections.get_mut(&handle) else {
            return;
        };
        if !Rc::ptr_eq(&entry.link, link) {
            return; // A task still held a connection whose handle has been given to another.
        }
        if link.connection().is_drained() {
            end(&mut entry.progress, &mut self.handshakes);
            self.connections.remove(&handle);
            self.deadlines.remove(handle);
            return;
        }
        let mut at = link.connection().poll_timeout();
        if let Progress::Handshake { until } = entry.progress {
            at = Some(at.map_or(until, |at| at.min(until)));
        }
        self.deadlines.set(handle, at);
    }

    fn close_all(&mut self) {
        let now = rt::now();
        for entry in self.connections.values() {
            if !entry.link.is_lost() {
                entry.link.close(
                    now,
                    code::CONNECTION_SHUTDOWN,
                    "the server is shutting down",
                );
            }
        }
    }
}

/// Leaves whatever a connection was, and counts.
fn end(progress: &mut Progress, handshakes: &mut usize) {
    if let Progress::Handshake { .. } = std::mem::replace(progress, Progress::Over) {
        *handshakes -= 1;
    }
}

/// A copy that does not keep the whole received batch alive on another shard.
fn detached(datagram: Datagram) -> Datagram {
    Datagram {
        bytes: BytesMut::from(&datagram.bytes[..]),
        ..datagram
    }
}
