use super::{Add, Classes, Config, classify};

#[track_caller]
fn assert_classes(user_agent: &str, device_class: &str, browser: &str, os: &str) {
    let Classes {
        device_class: d,
        browser: b,
        os: o,
    } = classify(user_agent);
    assert_eq!(
        (d, b.unwrap_or("-"), o.unwrap_or("-")),
        (device_class, browser, os),
        "{user_agent}"
    );
}

#[test]
fn desktops() {
    assert_classes(
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/118.0.0.0 Safari/537.36",
        "desktop",
        "Chrome",
        "Windows",
    );
    assert_classes(
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/118.0.0.0 Safari/537.36 Edg/118.0.2088.46",
        "desktop",
        "Edge",
        "Windows",
    );
    assert_classes(
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 13_6) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Safari/605.1.15",
        "desktop",
        "Safari",
        "macOS",
    );
    assert_classes(
        "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/118.0",
        "desktop",
        "Firefox",
        "Linux",
    );
    assert_classes(
        "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/118.0.0.0 Safari/537.36",
        "desktop",
        "Chrome",
        "ChromeOS",
    );
    assert_classes(
        "Mozilla/5.0 (compatible; MSIE 9.0; Windows NT 6.1; WOW64; Trident/5.0; Tablet PC 2.0)",
        "desktop",
        "Internet Explorer",
        "Windows",
    );
    assert_classes(
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/117.0.0.0 Safari/537.36 OPR/103.0.0.0",
        "desktop",
        "Opera",
        "Windows",
    );
}

#[test]
fn mobiles() {
    assert_classes(
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.0 Mobile/15E148 Safari/604.1",
        "mobile",
        "Safari",
        "iOS",
    );
    assert_classes(
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/118.0.5993.69 Mobile/15E148 Safari/604.1",
        "mobile",
        "Chrome",
        "iOS",
    );
    assert_classes(
        "Mozilla/5.0 (Linux; Android 13; SM-S911B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/22.0 Chrome/111.0.5563.116 Mobile Safari/537.36",
        "mobile",
        "Samsung Internet",
        "Android",
    );
    assert_classes(
        "Mozilla/5.0 (Linux; Android 8.1.0; CUBOT_X18_Plus) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/118.0.0.0 Mobile Safari/537.36",
        "mobile",
        "Chrome",
        "Android",
    );
    assert_classes(
        "Mozilla/5.0 (Windows Phone 10.0; Android 6.0.1; Microsoft; Lumia 950) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/52.0.2743.116 Mobile Safari/537.36 Edge/15.15063",
        "mobile",
        "Edge",
        "Windows Phone",
    );
    assert_classes(
        "Mozilla/5.0 (Android 13; Mobile; rv:109.0) Gecko/118.0 Firefox/118.0",
        "mobile",
        "Firefox",
        "Android",
    );
}

#[test]
fn tablets() {
    assert_classes(
        "Mozilla/5.0 (iPad; CPU OS 12_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/12.1.2 Mobile/15E148 Safari/604.1",
        "tablet",
        "Safari",
        "iOS",
    );
    assert_classes(
        "Mozilla/5.0 (Linux; Android 13; SM-X700) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/118.0.0.0 Safari/537.36",
        "tablet",
        "Chrome",
        "Android",
    );
    assert_classes(
        "Mozilla/5.0 (Android 13; Tablet; rv:109.0) Gecko/118.0 Firefox/118.0",
        "tablet",
        "Firefox",
        "Android",
    );
}

#[test]
fn televisions() {
    assert_classes(
        "Mozilla/5.0 (SMART-TV; Linux; Tizen 6.0) AppleWebKit/537.36 (KHTML, like Gecko) 76.0.3809.146/6.0 TV Safari/537.36",
        "tv",
        "Safari",
        "Tizen",
    );
    assert_classes(
        "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/79.0.3945.79 Safari/537.36",
        "tv",
        "Chrome",
        "webOS",
    );
    assert_classes(
        "Mozilla/5.0 (Linux; Android 9; AFTWMST22) AppleWebKit/537.36 (KHTML, like Gecko) Silk/112.4.1 like Chrome/112.0 Safari/537.36",
        "tv",
        "Silk",
        "Android",
    );
}

#[test]
fn bots() {
    assert_classes(
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "bot",
        "-",
        "-",
    );
    assert_classes(
        "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/118.0 Mobile Safari/537.36 (compatible; bingbot/2.0)",
        "bot",
        "Chrome",
        "Android",
    );
}

#[test]
fn what_is_not_known_is_other_and_has_no_family() {
    for user_agent in ["", "curl/8.4.0", "Ünbekannt/1 🦀"] {
        assert_classes(user_agent, "other", "-", "-");
    }
    assert_classes(
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; Xbox; Xbox One) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/64 Safari/537.36 Edge/17.17134",
        "other",
        "Edge",
        "Windows",
    );
}

#[test]
fn only_what_is_known_and_wanted_is_added() {
    let classes = classify("curl/8.4.0 (Linux)");
    let add = Config::default().add;
    let added: Vec<_> = add.keyed(&classes).collect();
    assert_eq!(added, [("deviceClass", "desktop"), ("os", "Linux")]);

    let add = Add {
        os: Some("platform".to_owned()),
        ..Add::default()
    };
    let added: Vec<_> = add.keyed(&classes).collect();
    assert_eq!(added, [("platform", "Linux")]);
}

#[test]
fn keys_of_others_are_refused() {
    assert_eq!(Config::default().validate(), Ok(()));
    for (os, fault) in [
        (
            "device",
            "add.os can't be \"device\": name a key of its own",
        ),
        (
            "userAgent",
            "add.os can't be \"userAgent\": name a key of its own",
        ),
        ("", "add.os can't be \"\": name a key of its own"),
        ("browser", "add.os is \"browser\", as another class is"),
    ] {
        let mut config = Config::default();
        config.add.os = Some(os.to_owned());
        assert_eq!(config.validate(), Err(fault.to_owned()));
    }
}
