import unittest

import rule


class TheConfiguration(unittest.TestCase):
    def test_what_is_not_configured_is_as_ever(self):
        config = rule.parse('{"others": []}')
        self.assertEqual(config.contacts, ["device", "location"])
        self.assertEqual(config.others, [])

    def test_what_is_no_configuration_is_refused(self):
        with self.assertRaisesRegex(ValueError, "unknown key `contact`"):
            rule.parse('{"contact": []}')
        with self.assertRaisesRegex(ValueError, "must be a list of strings"):
            rule.parse('{"others": "device"}')


if __name__ == "__main__":
    unittest.main()
