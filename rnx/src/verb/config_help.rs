//! `rnx config-help`: the client file, `--local` and exit codes in one page.

use crate::{
    exit::{Failure, code},
    out::Out,
};

const TEXT: &str = "\
CLIENT FILE
  --config PATH, else $RNX_CONFIG, else the first of these that exists:
    ./rnx-config.yml            (refused when it does not belong to you)
    ./config/rnx-config.yml     (refused when it does not belong to you)
    ~/.rnx/rnx-config.yml
    /etc/joblet/rnx-config.yml
    /opt/joblet/config/rnx-config.yml
  It holds a private key: mode 0600. `joblet init` and `joblet cert issue` write it.

    version: \"3.0\"
    nodes:
      default:
        address: host.example:50051
        isDefault: true         # optional
        nodeId: abc             # optional
        cert: |                 # our certificate
          -----BEGIN CERTIFICATE-----
        key: |                  # its private key
          -----BEGIN PRIVATE KEY-----
        ca: |                   # the authority of the server's certificate
          -----BEGIN CERTIFICATE-----

  The node is --node NAME, else the one with isDefault: true, else `default`, else the only one.
  The server's certificate must carry the name `joblet`, whatever its address is.

PRIVATE SERVER
  --local uses a server on loopback of this machine and starts it when none runs.
    $RNX_LOCAL_DIR    its directory, else /var/lib/joblet-local for root,
                      $XDG_STATE_HOME/joblet-local or ~/.local/state/joblet-local for others
    $JOBLET_BIN       its program, else `joblet` beside rnx, else in PATH
  `rnx --local shutdown` stops it and all of its jobs. Its log is joblet.log in that directory.

UPLOADS
  --upload FILE puts it at /work/<its name>, --upload DIR its contents in /work.
  --upload PATH:DEST puts a file at /work/DEST (or in it, when it ends in /), a directory's contents in
  /work/DEST. A PATH that exists as it is typed is taken whole, colons included.
  A PATH that is a symbolic link is followed; links inside a directory stay links. Sockets, FIFOs and
  devices inside a directory are left out with a warning.

EXIT CODES
  job run, attached or with --wait: the job's own; 128+n when signal n ended it; 124 when its time ran out;
    125 when anything failed before the command started; 126 found but not executable; 127 not found;
    6 when the server was lost and did not come back for half a minute (the job goes on)
  job wait: the same for how the job ended, of several jobs the first that is not 0
  everything else: 0 done, 1 failed, 2 usage, 3 not found, 4 not permitted, 5 conflict,
    6 cannot reach or trust the server
";

pub(crate) fn config_help(out: Out) -> Result<u8, Failure> {
    out.data(TEXT.as_bytes())?;
    Ok(code::DONE)
}
