//! The images of the demo, embedded in the program: `fixtures/` of the source tree.
//!
//! `tests/it/fixtures.rs` describes how they are made, and checks that this list is complete.

/// A file of an image layout.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// The path in the layout.
    pub path: &'static str,
    /// The content.
    pub bytes: &'static [u8],
}

macro_rules! files {
    ($folder:literal: $($path:literal)*) => {
        &[$(File { path: $path, bytes: include_bytes!(concat!("../../fixtures/", $folder, "/", $path)) }),*]
    };
}

/// `docker.io/library/hello-world:latest`: three platforms, an attestation for each, and an SBOM.
pub const HELLO_WORLD: &[File] = files!("hello-world":
    "index.json"
    "oci-layout"
    "blobs/sha256/03d26a6ae609d2711ddaccfd8dccfeec05f3d44c199aeb339f3f8b6373db0b12"
    "blobs/sha256/070d2747328901f4228c2063384ef5b9b592c77786fd08184d6033558d2d3541"
    "blobs/sha256/08a716f700b07cedf67904ca93305cc8c9b1338f9aa9f0fc659423765c367258"
    "blobs/sha256/0ca6c6fb6d3ec4e53c64fc56a64f41826ef1554bb8f0dc2e81d91f2b28a6a074"
    "blobs/sha256/0de4b2e676bc53335c4f8532e21d4a7c7c33e5dc63f286fe50cf0e862988db13"
    "blobs/sha256/1ce4bcbb00bd462d3694b4ce9dc171eb71b0abd3a7e68da96e3a05eb0939281f"
    "blobs/sha256/21609b6b0c43d339cc32e6e046beeb906a3d0437e338974871a016dd06228241"
    "blobs/sha256/3429720b32e9a8bd74fac53bc34250f355922b8afccc7ceeb6f84c5a162aae1f"
    "blobs/sha256/3c8a6bdfc28271685346a4741e053ddd63ee81d3f2284772170eb6053fd0528d"
    "blobs/sha256/3de4b202c249587e4f97e249b51febf81c814d5120d64d6f304af9bee477ca17"
    "blobs/sha256/44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    "blobs/sha256/497df0634da506a193083b5982ca84dde708b07bca2ca84d1bca2505dd2f0789"
    "blobs/sha256/501193728eab454532f91d255af94f463a94e362f13d29ccbad6ccacd80e13dc"
    "blobs/sha256/593eade8b14db53320f932078f46c8ecfcf1a83cd9c52bf4422229d10dac619d"
    "blobs/sha256/772f199ebe906075a28cfd574d439d98c8fbcb45db3faf6783a22a23a0515e48"
    "blobs/sha256/96e06543c315331fddf0e64705337880e52b01a25e33b2753cc376b47575e137"
    "blobs/sha256/99c48432e5ab142f4bcbb1618ada37e8f9f4fa525fcfad7370d22d3ec296a154"
    "blobs/sha256/9b8e668d8a668903f9784bae2e5f28543790e1bb3a24a9407f18cb5458af5762"
    "blobs/sha256/a11b9305129f8dd45796838b1a0a3a5b17e6095ce46c8c06f468cc3014cea445"
    "blobs/sha256/a4d76bb242332fc7abd7bdfdecd02d09bb12d6a777a25cf34d5b3c44f36d0da5"
    "blobs/sha256/b0f4276b2524ff968332df3c14c24e4fff0a66a3c00fe2a6a078a58f0648b855"
    "blobs/sha256/b41b05916ee12998b79a7d6b04c198c1a746d455f23c3c8d95f298e78edb9424"
    "blobs/sha256/f78ce2c553f204a83204e9612ed6a55920b28539cb94534d19704d6d0222d5a9"
);
