//! What a session does with a stream before it asks its shard for anything.

use proto_rkyv::{
    CONTROL_BYTES_MAX, HEADER_BYTES, Header, Kind, RefusalCode, Reply, Request, encode,
    header_bytes,
};

use super::*;
use crate::front::{
    FrontControl,
    testing::{Pki, Server, client, connect},
};

/// Reads the request as every session does, and says that it was understood.
async fn serve(stream: RequestStream, _control: FrontControl) {
    let RequestStream { send, recv, .. } = stream;
    let (mut incoming, mut outgoing) = (Incoming::new(recv), Outgoing::new(send));
    let understood = match incoming.request().await {
        Ok(_) => outgoing.reply(&Reply::LogEnd { dropped: 0 }).await,
        Err(broken) => Err(broken),
    };
    match understood {
        Ok(()) => outgoing.finish(),
        Err(broken) => end(&mut incoming, &mut outgoing, broken).await,
    }
}

/// The one reply to these bytes.
async fn answer(connection: &quinn::Connection, bytes: &[u8], finishes: bool) -> Reply {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    // The server may have stopped the stream before all is written.
    let _ = send.write_all(bytes).await;
    if finishes {
        let _ = send.finish();
    }
    let answer = recv.read_to_end(1 << 20).await.unwrap();
    let header = Header::parse(answer[..HEADER_BYTES].try_into().unwrap()).unwrap();
    assert_eq!(
        (header.kind, header.len as usize),
        (Kind::Control, answer.len() - HEADER_BYTES)
    );
    Reply::decode(&answer[HEADER_BYTES..]).unwrap()
}

#[test]
fn mangled_frames_are_refused_on_their_own_stream_only() {
    let pki = Pki::new();
    let server = Server::on_loopback(&pki, 1, serve);
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        let good = encode(&Request::Node).unwrap();
        // A stream that has sent half of its frame and stays open through all of this.
        let (mut waiting, mut waiting_answer) = connection.open_bi().await.unwrap();
        waiting.write_all(&good[..50]).await.unwrap();

        let with = |at: usize, value: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = value;
            bytes
        };
        let header = |kind, len| header_bytes(&Header::new(kind, len)).to_vec();
        let junk = [header(Kind::Control, 4), b"junk".to_vec()].concat();
        let lying = header(Kind::Control, CONTROL_BYTES_MAX + 1);
        let cases = [
            (with(36, 99), "malformed request: unknown frame kind 99"),
            (
                with(37, 2),
                "malformed request: frame version 2, expected 1",
            ),
            (
                with(38, 1),
                "malformed request: reserved frame flags 0x0001 are set",
            ),
            (junk, "malformed request: malformed control message"),
            (
                lying,
                "malformed request: Control frame of 65537 bytes, at most 65536 are allowed",
            ),
            (
                header(Kind::File, u32::MAX),
                "malformed request: File frame of 4294967295 bytes, at most 1048576 are allowed",
            ),
            (header(Kind::Argv, 3), "Argv frame before any request"),
        ];
        for (bytes, expected) in cases {
            for finishes in [false, true] {
                let Reply::Refused(refusal) = answer(&connection, &bytes, finishes).await else {
                    panic!("{expected}")
                };
                assert_eq!(
                    (refusal.code, refusal.message.as_str()),
                    (RefusalCode::Invalid, expected)
                );
            }
        }
        for (cut, expected) in [
            (0, "a stream without a request"),
            (39, "the stream ends inside a frame"),
            (41, "the stream ends inside a frame"),
        ] {
            let Reply::Refused(refusal) = answer(&connection, &good[..cut], true).await else {
                panic!("{expected}")
            };
            assert_eq!(refusal.message, expected);
        }
        assert_eq!(
            answer(&connection, &good, false).await,
            Reply::LogEnd { dropped: 0 }
        );
        waiting.write_all(&good[50..]).await.unwrap();
        assert!(
            !waiting_answer
                .read_to_end(1 << 10)
                .await
                .unwrap()
                .is_empty()
        );
    });
    server.close();
}

#[test]
fn a_request_that_does_not_come_resets_its_stream() {
    let pki = Pki::new();
    let server = Server::on_loopback(&pki, 1, |stream: RequestStream, _| async move {
        let (mut incoming, mut outgoing) = (Incoming::new(stream.recv), Outgoing::new(stream.send));
        // What the time limit of a first frame amounts to, without the wait.
        end(&mut incoming, &mut outgoing, Broken::Stalled).await;
    });
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"half a frame").await.unwrap();
        let error = recv.read_to_end(1).await.unwrap_err();
        assert!(
            matches!(error, quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) if code == quinn::VarInt::from_u32(code::STREAM_STALLED)),
            "{error}"
        );
    });
    server.close();
}
