import unittest

import rule


class TheRule(unittest.TestCase):
    def test_the_configured_status_is_the_quiet_one(self):
        self.assertTrue(rule.is_quiet(rule.parse("{}"), "quiet"))
        self.assertFalse(rule.is_quiet(rule.parse("{}"), "busy"))
        self.assertTrue(rule.is_quiet(rule.parse('{"status": "busy"}'), "busy"))
        self.assertFalse(rule.is_quiet(rule.parse("{}"), None))

    def test_what_is_no_configuration_is_refused(self):
        with self.assertRaisesRegex(ValueError, "unknown key `stauts`"):
            rule.parse('{"stauts": "busy"}')
        with self.assertRaisesRegex(ValueError, "must be a string"):
            rule.parse('{"status": 1}')


if __name__ == "__main__":
    unittest.main()
