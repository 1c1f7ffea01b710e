//! Who may ask: extractors that check the token of a request.

use std::sync::Arc;

use appbase::{
    auth::{Access, AuthError, TokenAuth},
    http::error_reply,
};
use axum::{
    extract::{FromRef, FromRequestParts},
    http::{StatusCode, header::AUTHORIZATION, request::Parts},
    response::Response,
};

/// A sender with a known token. 401 for all others.
pub(super) struct Authorized;

/// A sender with an administrator's token where there are such tokens, else with any known one.
/// 403 for a token that is known and not enough, 401 for all others.
pub(super) struct AdminToken;

impl<S> FromRequestParts<S> for Authorized
where
    S: Send + Sync,
    Arc<TokenAuth>: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Authorized, Response> {
        check(parts, &Arc::from_ref(state)).map(|_| Authorized).map_err(refusal)
    }
}

impl<S> FromRequestParts<S> for AdminToken
where
    S: Send + Sync,
    Arc<TokenAuth>: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<AdminToken, Response> {
        match check(parts, &Arc::from_ref(state)).map_err(refusal)? {
            Access::Admin => Ok(AdminToken),
            Access::User => Err(refusal(AuthError::NotAdmin)),
        }
    }
}

fn check(parts: &Parts, auth: &TokenAuth) -> Result<Access, AuthError> {
    auth.check(parts.headers.get(AUTHORIZATION).map(|value| value.as_bytes()))
}

fn refusal(error: AuthError) -> Response {
    let status = match error {
        AuthError::NotAdmin => StatusCode::FORBIDDEN,
        AuthError::Missing | AuthError::Invalid => StatusCode::UNAUTHORIZED,
    };
    error_reply(status, &error.to_string())
}
