//! Events of about 1 KB and 30 columns, as an analytics SDK sends them.

use std::fmt::Write;

/// Writes event number `number` (JSON) into `buffer`, which is cleared first. The key is the column
/// `id`.
pub(crate) fn write_event(buffer: &mut String, number: u64) {
    buffer.clear();
    let random = mix(number);
    let (page, user, session) = (random % 997, random % 100_003, random % 1_000_033);
    let second = number % 86_400;
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    let millis = random % 1000;
    let timestamp =
        format!("2026-11-{:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z", number % 28 + 1);
    write!(
        buffer,
        concat!(
            r#"{{"id":{number},"type":"track","event":"Product Viewed","messageId":"{random:016x}-{number:016x}","#,
            r#""timestamp":"{timestamp}","sentAt":"{timestamp}","anonymousId":"anonymous-{session:012}","userId":"user-{user:09}","#,
            r#""context":{{"ip":"203.0.113.{octet}","locale":"en-GB","timezone":"Europe/London","#,
            r#""userAgent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36","#,
            r#""page":{{"path":"/products/{page}","url":"https://shop.example/products/{page}?ref=mail","title":"Product number {page}","referrer":"https://search.example/"}},"#,
            r#""library":{{"name":"analytics.js","version":"2.11.1"}},"screen":{{"width":1920,"height":1080,"density":1.25}},"#,
            r#""campaign":{{"name":"autumn-sale","source":"newsletter","medium":"email"}}}},"#,
            r#""properties":{{"product_id":"sku-{page:06}","category":"Garden chairs","name":"Folding chair \"Åre\", oak","price":{price}.{cents:02},"quantity":{quantity},"#,
            r#""currency":"EUR","position":{position},"discount":{discount},"in_stock":{in_stock}}},"session_id":{session},"visits":{visits}}}"#
        ),
        number = number,
        random = random,
        timestamp = timestamp,
        session = session,
        user = user,
        octet = random % 255,
        page = page,
        price = random % 500,
        cents = random % 100,
        quantity = random % 9 + 1,
        position = random % 40,
        discount = if random.is_multiple_of(3) { "0.15" } else { "0.2" },
        in_stock = !random.is_multiple_of(7),
        visits = random % 50,
    )
    .expect("writing to a String does not fail");
}

/// Spreads numbers evenly (`SplitMix64`), the same in every run.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_event_is_json_of_about_a_kilobyte() {
        let mut buffer = String::new();
        super::write_event(&mut buffer, 12345);
        let parsed: serde_json::Value = serde_json::from_str(&buffer).unwrap();
        assert_eq!(parsed["id"], 12345);
        assert!((950..1150).contains(&buffer.len()), "{} bytes", buffer.len());
    }
}
