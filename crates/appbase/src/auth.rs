//! Bearer tokens, plain or hashed, for users and for administrators.
//!
//! Invariants: a token is compared in a time that does not depend on where it differs, with every
//! configured token; no token is ever part of an error, a log line or a reply.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use sha2::{Digest, Sha512};
use subtle::{Choice, ConstantTimeEq};
use tracing::warn;

use crate::AppConfig;

/// The secret that hashed tokens have where none is configured. Public, so worth a warning.
const BUILT_IN_SECRET: &str = "dea42a58-acf4-45af-85bb-e77e94bd5025";

/// What a request may do; administrators may do what users may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// What is open to users.
    User,
    /// Everything.
    Admin,
}

/// Why a request may do nothing. The texts are what the original answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There is no token.
    #[error("Authorization header with Bearer token is required")]
    Missing,
    /// The token is not one of ours.
    #[error("Invalid token")]
    Invalid,
    /// The token is a user's, where an administrator's is asked for.
    #[error("Administrator token is required")]
    NotAdmin,
}

/// Why the configured tokens are not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthConfigError {
    /// A hashed token cannot be read.
    #[error("{variable}: item {item} is not of the form salt.hash")]
    Item {
        /// The variable that holds it, without its prefix.
        variable: &'static str,
        /// Its place in the list, from 1.
        item: usize,
    },
    /// There is no token, and the service was not set to be open.
    #[error(
        "no token is configured: set AUTH_TOKENS or RAW_AUTH_TOKENS, or AUTH_OPEN=true to serve everybody"
    )]
    NoToken,
}

/// The tokens of a service.
#[derive(Debug)]
pub struct TokenAuth {
    users: Tokens,
    admins: Tokens,
    is_open: bool,
}

impl TokenAuth {
    /// Fails where a hashed token cannot be read, and where there is no token although the service
    /// is not set to be open. Warns of settings that are legal but open more than they seem to.
    pub fn new(config: &AppConfig) -> Result<TokenAuth, AuthConfigError> {
        let secrets = match config.token_secret.0.as_slice() {
            [] => vec![String::new()],
            secrets => secrets.to_vec(),
        };
        let users = Tokens::new(
            &config.raw_auth_tokens.0,
            ("AUTH_TOKENS", &config.auth_tokens.0),
            &secrets,
        )?;
        let admins = Tokens::new(
            &config.raw_admin_auth_tokens.0,
            ("ADMIN_AUTH_TOKENS", &config.admin_auth_tokens.0),
            &secrets,
        )?;
        let is_open = users.is_empty() && admins.is_empty();
        if is_open && !config.auth_open {
            return Err(AuthConfigError::NoToken);
        }
        if is_open {
            warn!("no token is configured and AUTH_OPEN is set: every request is served");
        }
        let has_hashes = !users.hashed.is_empty() || !admins.hashed.is_empty();
        if has_hashes && secrets.iter().any(|s| s.is_empty() || s == BUILT_IN_SECRET) {
            warn!(
                "hashed tokens are checked with the built-in secret, which is public; set TOKEN_SECRET"
            );
        }
        Ok(TokenAuth { users, admins, is_open })
    }

    /// What the sender of this `Authorization` header (`Bearer <token>` or the token alone) may do.
    /// Without administrators' tokens, every token opens everything. Never fails with
    /// [`AuthError::NotAdmin`], which is for callers that ask for more than they got.
    pub fn check(&self, header: Option<&[u8]>) -> Result<Access, AuthError> {
        if self.is_open {
            return Ok(Access::Admin);
        }
        let header = header.unwrap_or_default();
        let token = header.strip_prefix(b"Bearer ").unwrap_or(header);
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        // both are always looked at, so that time tells nothing about which it was
        let (is_admin, is_user) = (self.admins.contains(token), self.users.contains(token));
        if is_admin || (is_user && self.admins.is_empty()) {
            Ok(Access::Admin)
        } else if is_user {
            Ok(Access::User)
        } else {
            Err(AuthError::Invalid)
        }
    }
}

#[derive(Default)]
struct Tokens {
    raw: Vec<String>,
    hashed: Vec<HashedToken>,
    secrets: Vec<String>,
}

impl Tokens {
    fn new(
        raw: &[String],
        (variable, items): (&'static str, &[String]),
        secrets: &[String],
    ) -> Result<Tokens, AuthConfigError> {
        let hashed = items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let mut parts = item.split('.');
                let (Some(salt), Some(hash)) = (parts.next(), parts.next()) else {
                    return Err(AuthConfigError::Item { variable, item: index + 1 });
                };
                Ok(HashedToken { salt: salt.to_owned(), hash: hash.to_owned() })
            })
            .collect::<Result<_, _>>()?;
        // an empty item is what `a,,b` gives; an empty token opens nothing anyway
        let raw = raw.iter().filter(|token| !token.is_empty()).cloned().collect();
        Ok(Tokens { raw, hashed, secrets: secrets.to_vec() })
    }

    fn is_empty(&self) -> bool {
        self.raw.is_empty() && self.hashed.is_empty()
    }

    fn contains(&self, token: &[u8]) -> bool {
        let mut found = Choice::from(0);
        for raw in &self.raw {
            found |= raw.as_bytes().ct_eq(token);
        }
        for hashed in &self.hashed {
            for secret in &self.secrets {
                found |= hashed.matches(token, secret);
            }
        }
        found.into()
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} plain and {} hashed tokens", self.raw.len(), self.hashed.len())
    }
}

struct HashedToken {
    salt: String,
    hash: String,
}

impl HashedToken {
    fn matches(&self, token: &[u8], secret: &str) -> Choice {
        let is_hex = self.hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        // in the older form an empty secret stays empty
        let secret = if is_hex && secret.is_empty() { BUILT_IN_SECRET } else { secret };
        let digest = Sha512::new()
            .chain_update(token)
            .chain_update(self.salt.as_bytes())
            .chain_update(secret.as_bytes())
            .finalize();
        if is_hex {
            let mut hex = [0; 128];
            for (byte, pair) in digest.iter().zip(hex.chunks_exact_mut(2)) {
                pair[0] = hex_digit(byte >> 4);
                pair[1] = hex_digit(byte & 15);
            }
            hex.ct_eq(self.hash.as_bytes())
        } else {
            STANDARD_NO_PAD.encode(digest).as_bytes().ct_eq(self.hash.as_bytes())
        }
    }
}

fn hex_digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::values::List;

    const TOKEN: &str = "21a2ae36-32994870a9fbf2f61ea6f6c8";
    const SALT: &str = "1b16b3f8-5f50-40e4-a928-4cf7f48b927f";
    const LEGACY: &str =
        "pauqzVf89cWpIIpSqcA3fO/KyxGEFp0F9VJ5qd58R9Vhsa7VIn/KmSduw7WqiGfvd0W9Wzc1TVPlauupkE7PHA";
    const HEX: &str = "a5abaacd57fcf5c5a9208a52a9c0377cefcacb1184169d05f55279a9de7c47d561b1aed5227fca99\
                       276ec3b5aa8867ef7745bd5b37354d53e56aeba9904ecf1c";

    #[derive(Parser)]
    struct Sample {
        #[command(flatten)]
        app: AppConfig,
    }

    fn config(change: impl FnOnce(&mut AppConfig)) -> AppConfig {
        let mut config = Sample::parse_from(["test"]).app;
        change(&mut config);
        config
    }

    fn auth(change: impl FnOnce(&mut AppConfig)) -> TokenAuth {
        TokenAuth::new(&config(change)).unwrap()
    }

    fn list(items: &[&str]) -> List {
        List(items.iter().map(|item| (*item).to_owned()).collect())
    }

    fn check(auth: &TokenAuth, header: &str) -> Result<Access, AuthError> {
        auth.check(Some(header.as_bytes()))
    }

    #[test]
    fn plain_tokens_come_with_or_without_bearer() {
        let auth = auth(|c| c.raw_auth_tokens = list(&["one", "two"]));
        for header in ["Bearer one", "Bearer two", "two"] {
            assert!(check(&auth, header).is_ok(), "{header}");
        }
        for header in
            ["Bearer three", "bearer one", "Bearer  one", "Bearer onee", "Bearer on", "one,two"]
        {
            assert_eq!(check(&auth, header), Err(AuthError::Invalid), "{header}");
        }
        assert_eq!(auth.check(None), Err(AuthError::Missing));
        assert_eq!(check(&auth, "Bearer "), Err(AuthError::Missing));
    }

    #[test]
    fn hashed_tokens_match_in_both_forms() {
        let secret = [BUILT_IN_SECRET];
        for hash in [HEX, LEGACY] {
            let auth = auth(|c| {
                c.auth_tokens = list(&[&format!("{SALT}.{hash}.ignored")]);
                c.token_secret = list(&secret);
            });
            assert!(check(&auth, &format!("Bearer {TOKEN}")).is_ok(), "{hash}");
            assert_eq!(check(&auth, "Bearer other"), Err(AuthError::Invalid));
        }
    }

    #[test]
    fn an_empty_secret_is_the_built_in_one_in_the_new_form_only() {
        let new = auth(|c| c.auth_tokens = list(&[&format!("{SALT}.{HEX}")]));
        assert!(check(&new, TOKEN).is_ok());
        let legacy = auth(|c| c.auth_tokens = list(&[&format!("{SALT}.{LEGACY}")]));
        assert_eq!(check(&legacy, TOKEN), Err(AuthError::Invalid));
    }

    #[test]
    fn every_secret_of_the_list_is_tried() {
        let auth = auth(|c| {
            c.auth_tokens = list(&["x.y", &format!("{SALT}.{HEX}")]);
            c.token_secret = list(&["other", BUILT_IN_SECRET]);
        });
        assert!(check(&auth, TOKEN).is_ok());
    }

    #[test]
    fn an_upper_case_hash_never_matches() {
        let auth = auth(|c| c.auth_tokens = list(&[&format!("{SALT}.{}", HEX.to_uppercase())]));
        assert_eq!(check(&auth, TOKEN), Err(AuthError::Invalid));
    }

    #[test]
    fn administrators_have_tokens_of_their_own() {
        let auth = auth(|c| {
            c.raw_auth_tokens = list(&["user"]);
            c.raw_admin_auth_tokens = list(&["admin"]);
        });
        assert_eq!(check(&auth, "Bearer user"), Ok(Access::User));
        assert_eq!(check(&auth, "Bearer admin"), Ok(Access::Admin));
    }

    #[test]
    fn without_administrators_every_token_opens_everything() {
        let auth = auth(|c| c.raw_auth_tokens = list(&["user"]));
        assert_eq!(check(&auth, "user"), Ok(Access::Admin));
    }

    #[test]
    fn without_tokens_the_service_starts_only_when_told_to() {
        assert_eq!(TokenAuth::new(&config(|_| ())).unwrap_err(), AuthConfigError::NoToken);
        let empty_items = config(|c| c.raw_auth_tokens = list(&["", ""]));
        assert_eq!(TokenAuth::new(&empty_items).unwrap_err(), AuthConfigError::NoToken);
        let open = auth(|c| c.auth_open = true);
        assert_eq!(open.check(None), Ok(Access::Admin));
    }

    #[test]
    fn the_flag_opens_nothing_once_there_are_tokens() {
        let auth = auth(|c| {
            c.auth_open = true;
            c.raw_auth_tokens = list(&["user"]);
        });
        assert_eq!(auth.check(None), Err(AuthError::Missing));
    }

    #[test]
    fn an_item_without_a_dot_is_named_by_its_place() {
        let config = config(|c| c.auth_tokens = list(&["a.b", "s3cret"]));
        let error = TokenAuth::new(&config).unwrap_err();
        assert_eq!(error.to_string(), "AUTH_TOKENS: item 2 is not of the form salt.hash");
    }
}
