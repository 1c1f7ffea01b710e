//! Bodies are taken as they come: none is unpacked.
//!
//! A packed body would be refused as an event that is no JSON, which tells nobody why; and unpacked
//! it could be a thousand times as large as what was received.

use axum::{
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING},
    },
    response::{IntoResponse, Response},
};

use appbase::http::error_reply;

const IDENTITY: &str = "identity";

/// The body is packed.
#[derive(Debug, thiserror::Error)]
#[error("unsupported content encoding: the body is not unpacked, send it without Content-Encoding")]
pub(super) struct PackedBody;

impl IntoResponse for PackedBody {
    fn into_response(self) -> Response {
        let mut response = error_reply(StatusCode::UNSUPPORTED_MEDIA_TYPE, &self.to_string());
        response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(IDENTITY));
        response
    }
}

/// Refuses a body that the headers call packed, in any way.
pub(super) fn check_unpacked(headers: &HeaderMap) -> Result<(), PackedBody> {
    let is_plain = |encoding: &[u8]| {
        let encoding = encoding.trim_ascii();
        encoding.is_empty() || encoding.eq_ignore_ascii_case(IDENTITY.as_bytes())
    };
    let mut named =
        headers.get_all(CONTENT_ENCODING).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    if named.all(is_plain) { Ok(()) } else { Err(PackedBody) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_body_as_it_is_is_taken() {
        let check = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            check_unpacked(&headers).is_ok()
        };
        for plain in [&[][..], &[""], &["identity"], &["Identity", " identity , "]] {
            assert!(check(plain), "{plain:?}");
        }
        for packed in [&["gzip"][..], &["GZIP"], &["br"], &["identity", "zstd"], &["identity,x"]] {
            assert!(!check(packed), "{packed:?}");
        }
    }
}
