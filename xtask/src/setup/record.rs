//! `RECORD`: a wheel's own list of its files with their SHA-256 and size.

use std::collections::HashMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use sha2::{Digest, Sha256};

/// What a wheel says about one of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// SHA-256, as lower-case hex.
    pub(crate) sha256: String,
    /// Length of the file, in bytes.
    pub(crate) size_bytes: u64,
}

/// Reads a RECORD: lines of `path,sha256=BASE64URL,size`, as CSV. Files without a hash (RECORD itself) are left out.
pub(crate) fn parse(text: &str) -> Result<HashMap<String, Recorded>> {
    let mut files = HashMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (rest, size) = line.rsplit_once(',').with_context(|| malformed(line))?;
        let (path, hash) = rest.rsplit_once(',').with_context(|| malformed(line))?;
        if hash.is_empty() {
            continue;
        }
        let Some(digest) = hash.strip_prefix("sha256=") else {
            bail!("RECORD of the wheel gives {path} a hash that is not SHA-256: {hash}");
        };
        let digest = BASE64URL_NOPAD.decode(digest.as_bytes()).ok().with_context(|| malformed(line))?;
        let size_bytes = size.parse().ok().with_context(|| malformed(line))?;
        files.insert(unquote(path), Recorded { sha256: HEXLOWER.encode(&digest), size_bytes });
    }
    Ok(files)
}

fn unquote(field: &str) -> String {
    match field.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => field.to_owned(),
    }
}

fn malformed(line: &str) -> String {
    format!("malformed line in the wheel's RECORD: {line:?}")
}

/// SHA-256 of what `reader` still holds, as lower-case hex.
pub(crate) fn sha256(mut reader: impl Read) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(HEXLOWER.encode(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn lines_become_hashes_and_sizes() {
        let text = "torch/lib/libc10.so,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,1498969\n\
                    \"a,b \"\"c\"\".h\",sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n\
                    torch-2.11.0.dist-info/RECORD,,\n";
        let files = parse(text).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files["torch/lib/libc10.so"], Recorded { sha256: EMPTY.into(), size_bytes: 1_498_969 });
        assert_eq!(files["a,b \"c\".h"].size_bytes, 0);
    }

    #[test]
    fn odd_lines_are_refused() {
        assert!(parse("no commas").unwrap_err().to_string().contains("no commas"));
        assert!(parse("a,md5=xyz,1").unwrap_err().to_string().contains("not SHA-256"));
        assert!(parse("a,sha256=!!,1").is_err());
        assert!(parse("a,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,many").is_err());
    }

    #[test]
    fn hash_of_nothing_is_the_known_one() {
        assert_eq!(sha256(std::io::empty()).unwrap(), EMPTY);
    }
}
