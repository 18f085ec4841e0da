//! A few lines of Redis protocol, to look at a server from outside of the code under test.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// More than any test asks for; a length beyond it is an error rather than an allocation.
const LONGEST: usize = 64 << 20;

/// An answer of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A status, e.g. `OK`.
    Simple(String),
    /// An error, e.g. `ERR unknown command`.
    Error(String),
    /// A number.
    Integer(i64),
    /// A value.
    Bulk(Vec<u8>),
    /// Nothing.
    Nil,
    /// Several answers.
    Array(Vec<Reply>),
}

impl Reply {
    /// The value as text, if it is one.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Simple(text) => Some(text.clone()),
            Self::Bulk(bytes) => String::from_utf8(bytes.clone()).ok(),
            _ => None,
        }
    }

    /// The answers of an array; none of anything else.
    #[must_use]
    pub fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }
}

/// A connection to a server; blocking, RESP2.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects. `limit` holds for connecting and for each later read and write.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn open(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// When the server does not answer in time, or answers what is not RESP2.
    pub fn call(&mut self, words: &[&str]) -> io::Result<Reply> {
        self.send(words)?;
        self.read()
    }

    /// Sends a command.
    ///
    /// # Errors
    /// When the server takes nothing in time.
    pub fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.reader.get_mut().write_all(command.as_bytes())
    }

    /// Waits for one more answer, e.g. the next line after `MONITOR` or the next message after `SUBSCRIBE`.
    ///
    /// # Errors
    /// As [`call`](Self::call). After an error the connection is of no use any more.
    pub fn read(&mut self) -> io::Result<Reply> {
        read(&mut self.reader)
    }
}

/// Sends one command on a new connection; 5 s at most for each step.
///
/// # Errors
/// When the server cannot be reached, does not answer in time, or answers what is not RESP2.
pub fn command(address: SocketAddr, words: &[&str]) -> io::Result<Reply> {
    command_within(address, words, Duration::from_secs(5))
}

/// [`command`] with a deadline for each step.
///
/// # Errors
/// As [`command`].
pub fn command_within(address: SocketAddr, words: &[&str], limit: Duration) -> io::Result<Reply> {
    Connection::open(address, limit)?.call(words)
}

fn read(from: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end_matches("\r\n");
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| io::Error::other("the connection ended"))?;
    let number = || rest.parse::<i64>().map_err(io::Error::other);
    Ok(match kind {
        "+" => Reply::Simple(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Integer(number()?),
        "$" => match usize::try_from(number()?) {
            Err(_) => Reply::Nil,
            Ok(length) if length > LONGEST => return Err(io::Error::other("too long an answer")),
            Ok(length) => {
                let mut bytes = vec![0; length + 2];
                from.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Reply::Bulk(bytes)
            }
        },
        "*" => match usize::try_from(number()?) {
            Err(_) => Reply::Nil,
            Ok(length) => Reply::Array((0..length).map(|_| read(from)).collect::<io::Result<_>>()?),
        },
        _ => return Err(io::Error::other("not RESP2")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_each_kind_are_read() {
        let mut bytes: &[u8] = b"*5\r\n+OK\r\n-ERR no\r\n:-7\r\n$2\r\nhi\r\n$-1\r\n";
        let (ok, no) = (Reply::Simple("OK".into()), Reply::Error("ERR no".into()));
        let all = vec![ok, no, Reply::Integer(-7), Reply::Bulk(b"hi".to_vec()), Reply::Nil];
        assert_eq!(read(&mut bytes).unwrap(), Reply::Array(all));
        for broken in [&b""[..], b"?\r\n", b":x\r\n", b"$9\r\nhi\r\n", b"$99999999999\r\n"] {
            assert!(read(&mut &broken[..]).is_err(), "{broken:?}");
        }
    }
}
