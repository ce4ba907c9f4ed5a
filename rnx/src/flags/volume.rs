//! What may be typed about volumes.

use std::ffi::OsString;

use clap::{Args, Subcommand, ValueEnum};
use rnx::proto::Attachment;

const CP_HELP: &str = "\
As with `cp -r`: into a directory that is there, else under the new name. DIR/. is what DIR holds.
A path of this machine that has a colon begins with ./ or /";
const ARCHIVE_HELP: &str = "It holds contents, names, permission bits, symbolic and hard links and FIFOs, not owners and times. \
     Sockets and devices are left out; each is named on standard error.";
const IMPORT_HELP: &str = "\
Files that are there already are replaced, others stay. Owners and times are left out, and devices, each of which is
named on standard error. A hard link is made to what the volume has under that name when it comes.
When it fails, what came before that is written.";

#[derive(Subcommand, Debug)]
pub(crate) enum VolumeVerb {
    /// Make a volume
    Create(VolumeCreateFlags),
    /// List volumes
    List(VolumeListFlags),
    /// Remove volumes that no job has
    Remove(VolumeNames),
    /// Show everything about a volume
    Inspect(VolumeName),
    /// Copy files into a volume, or out of one
    #[command(after_help = CP_HELP)]
    Cp(VolumeCpFlags),
    /// Write all files of a volume to standard output, as a tar archive
    #[command(after_help = ARCHIVE_HELP)]
    Export(VolumeName),
    /// Write the files of a tar archive on standard input into a volume
    #[command(after_help = IMPORT_HELP)]
    Import(VolumeName),
}

#[derive(Args, Debug)]
pub(crate) struct VolumeCreateFlags {
    /// A letter, then letters, digits, _ or -
    pub(crate) name: String,
    /// Its size, for example 500MB, 1.5GB or a number of bytes
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) size: String,
    /// On disk, or in memory until the server's machine is started anew
    #[arg(
        long = "type",
        value_name = "TYPE",
        value_enum,
        default_value = "filesystem"
    )]
    pub(crate) kind: VolumeType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VolumeType {
    Filesystem,
    Memory,
}

#[derive(Args, Debug)]
pub(crate) struct VolumeListFlags {
    /// Also what is used of each, and how many jobs have it
    #[arg(long)]
    pub(crate) wide: bool,
}

#[derive(Args, Debug)]
pub(crate) struct VolumeName {
    /// Name of the volume
    pub(crate) name: String,
}

#[derive(Args, Debug)]
pub(crate) struct VolumeNames {
    /// Names of volumes
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct VolumeCpFlags {
    /// File or directory, or NAME:/PATH in a volume
    pub(crate) from: OsString,
    /// Where to, likewise; one side is in a volume
    pub(crate) to: OsString,
}

/// `NAME`, `NAME:ro` or `NAME:rw`. What a name may be is the server's to say.
pub(super) fn attachment(text: &str) -> Result<Attachment, String> {
    let (volume, access) = text.split_once(':').unwrap_or((text, "rw"));
    let is_read_only = match access {
        "rw" => false,
        "ro" => true,
        _ => return Err(format!("{access:?} is neither ro nor rw")),
    };
    if volume.is_empty() {
        return Err("the volume has no name".into());
    }
    Ok(Attachment {
        volume: volume.to_owned(),
        is_read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_writable_unless_it_is_said() {
        let check = |text: &str, volume: &str, is_read_only| {
            let volume = volume.to_owned();
            assert_eq!(
                attachment(text),
                Ok(Attachment {
                    volume,
                    is_read_only
                })
            );
        };
        check("data", "data", false);
        check("data:rw", "data", false);
        check("data:ro", "data", true);
        check("my.data", "my.data", false);
        for refused in [
            "data:",
            "data:r",
            "data:ro:ro",
            "data:RO",
            "data:/x",
            ":ro",
            "",
        ] {
            assert!(attachment(refused).is_err(), "{refused}");
        }
    }
}
