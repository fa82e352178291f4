//! Layers: real gzipped tar files of a given size whose content cannot be compressed.

use sha2::{Digest as _, Sha256};

/// A layer's bytes and the digest of the tar file in them.
#[derive(Debug, Clone)]
pub struct Layer {
    pub bytes: Vec<u8>,
    pub diff_id: String,
}

/// The smallest layer that is a real tar file.
pub const MIN_LAYER: usize = 512 + 1024 + 10 + 2 + 5 + 8;

/// A layer of exactly this many bytes. Below [`MIN_LAYER`] it is noise that claims to be a tar
/// file, which copiers must not care about.
pub fn layer(seed: u64, size: usize) -> Layer {
    if size < MIN_LAYER {
        let bytes = random_bytes(seed, size);
        return Layer { diff_id: sha256(&bytes), bytes };
    }
    // The largest file that fits; the rest fills gzip's extra field.
    let wrapped = |data: usize| {
        let tar = data + 512 + 1024;
        tar + tar.div_ceil(BLOCK) * 5 + 10 + 2 + 8
    };
    let mut data = (size - MIN_LAYER) / 512 * 512;
    while wrapped(data) > size {
        data -= 512;
    }
    let tar = tar(seed, data);
    Layer { diff_id: sha256(&tar), bytes: gzip(&tar, size - wrapped(data)) }
}

/// Bytes that are the same for the same seed, and that no compression makes smaller.
pub fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    // splitmix64
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x7472_616e_736c_6f61;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One file named by the seed.
fn tar(seed: u64, size: usize) -> Vec<u8> {
    tar_of(&format!("noise-{seed}"), &random_bytes(seed, size))
}

/// A tar file of one file, and the two empty blocks at the end.
pub fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// The most bytes in one stored block of deflate.
const BLOCK: usize = 65535;

/// gzip that stores, with `padding` bytes in the header's extra field.
fn gzip(data: &[u8], padding: usize) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
    let short = |number: usize| u16::try_from(number).expect("fits two bytes");
    out.extend(short(padding).to_le_bytes());
    out.resize(out.len() + padding, 0);
    let blocks = data.len().div_ceil(BLOCK);
    for (index, block) in data.chunks(BLOCK).enumerate() {
        out.push(u8::from(index + 1 == blocks));
        out.extend(short(block.len()).to_le_bytes());
        out.extend((!short(block.len())).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend(crc32(data).to_le_bytes());
    out.extend(u32::try_from(data.len() & 0xffff_ffff).expect("fits").to_le_bytes());
    out
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| CRC[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const CRC: [u32; 256] = {
    let mut table = [0_u32; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};
