//! What happens to job output on its way to a person: control sequences escaped, times put before lines.
//!
//! A job is not trusted, and a terminal executes what it is sent: titles, clipboards, cursor movements that
//! overwrite what was printed before. On a terminal every control character but newline and tab is shown
//! instead (`^[` for ESC, `\x9b` for one of eight bits), a carriage return only when no newline follows.
//! Text that is UTF-8 passes; other bytes are shown as `\xNN`. Sequences may straddle any number of pieces.

/// Makes the output of one stream harmless for a terminal.
#[derive(Debug, Default)]
pub(crate) struct Escaper {
    /// The beginning of a character whose rest has not come, or a carriage return.
    pending: Vec<u8>,
}

impl Escaper {
    /// Appends `input`, escaped, to `out`.
    pub(crate) fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        let joined;
        let mut rest = if self.pending.is_empty() {
            input
        } else {
            self.pending.extend_from_slice(input);
            joined = std::mem::take(&mut self.pending);
            &joined
        };
        while !rest.is_empty() {
            match str::from_utf8(rest) {
                Ok(text) => return self.text(text, out),
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    self.text(str::from_utf8(good).expect("valid_up_to() says so"), out);
                    if !self.pending.is_empty() {
                        // A carriage return with something else than a newline behind it.
                        self.finish(out);
                    }
                    let Some(len) = error.error_len() else {
                        self.pending = bad.to_vec();
                        return;
                    };
                    bad[..len].iter().for_each(|byte| hex(*byte, out));
                    rest = &bad[len..];
                }
            }
        }
    }

    /// Appends what is still pending: nothing will complete it.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        for byte in std::mem::take(&mut self.pending) {
            if byte == b'\r' {
                out.extend_from_slice(b"^M")
            } else {
                hex(byte, out)
            }
        }
    }

    fn text(&mut self, text: &str, out: &mut Vec<u8>) {
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\n' | '\t' => out.push(if c == '\n' { b'\n' } else { b'\t' }),
                '\r' => match chars.peek() {
                    Some('\n') => out.push(b'\r'),
                    Some(_) => out.extend_from_slice(b"^M"),
                    None => self.pending.push(b'\r'),
                },
                '\u{7f}' => out.extend_from_slice(b"^?"),
                '\0'..='\u{1f}' => out.extend_from_slice(&[b'^', c as u8 + b'@']),
                '\u{80}'..='\u{9f}' => hex(c as u8, out),
                other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}

fn hex(byte: u8, out: &mut Vec<u8>) {
    let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
    out.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte & 15)]);
}

/// Puts a time before each line of one stream. A line keeps the time of its first byte.
#[derive(Debug, Default)]
pub(crate) struct Stamper {
    in_line: bool,
}

impl Stamper {
    /// Appends `input`, captured at `time`, to `out`.
    pub(crate) fn push(&mut self, time: &str, input: &[u8], out: &mut Vec<u8>) {
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            if !self.in_line {
                out.extend_from_slice(time.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(line);
            self.in_line = !line.ends_with(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(pieces: &[&[u8]]) -> String {
        let (mut escaper, mut out) = (Escaper::default(), Vec::new());
        for piece in pieces {
            escaper.push(piece, &mut out);
        }
        escaper.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn control_sequences_are_shown_and_text_passes() {
        let check = |input: &[u8], expected: &str| assert_eq!(escaped(&[input]), expected);
        check(b"plain\ttext\n", "plain\ttext\n");
        check("grün 日本 🎉".as_bytes(), "grün 日本 🎉");
        check(b"\x1b]0;title\x07\x1b[2J", "^[]0;title^G^[[2J");
        check(b"\x00\x08\x7f", "^@^H^?");
        check("\u{9b}31m".as_bytes(), "\\x9b31m");
        check(b"\x9b31m", "\\x9b31m");
        check(b"ok\r\nbad\rgood\r", "ok\r\nbad^Mgood^M");
        check(b"\xff\xc3", "\\xff\\xc3");
        check(b"\r\xff", "^M\\xff");
        check(b"\xe2\x82x", "\\xe2\\x82x");
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_the_result(input in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..64) {
            let (left, right) = input.split_at(cut.min(input.len()));
            prop_assert_eq!(escaped(&[left, right]), escaped(&[&input]));
            let single: Vec<_> = input.chunks(1).collect();
            prop_assert_eq!(escaped(&single), escaped(&[&input]));
        }

        #[test]
        fn nothing_that_a_terminal_executes_comes_out(input in proptest::collection::vec(any::<u8>(), 0..256)) {
            let out = escaped(&[&input]);
            prop_assert!(!out.replace("\r\n", "\n").contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
        }
    }

    #[test]
    fn each_line_gets_one_time_however_it_is_cut() {
        let (mut stamper, mut out) = (Stamper::default(), Vec::new());
        stamper.push("T1", b"a\nb", &mut out);
        stamper.push("T2", b"c\n", &mut out);
        stamper.push("T3", b"\nd", &mut out);
        assert_eq!(out, b"T1 a\nT1 bc\nT3 \nT3 d");
    }
}
