import unittest

import rule


class TheRule(unittest.TestCase):
    def test_the_user_agent_tells_what_kind_of_client_it_is(self):
        self.assertEqual(rule.kind("Mozilla/5.0 (iPhone) Mobile/15E148"), "mobile")
        self.assertEqual(rule.kind("Mozilla/5.0 (X11; Linux x86_64)"), "desktop")

    def test_what_is_no_configuration_is_refused(self):
        self.assertEqual(rule.parse('{"into": "kind"}').into, "kind")
        with self.assertRaisesRegex(ValueError, "unknown key `in`"):
            rule.parse('{"in": "kind"}')
        with self.assertRaisesRegex(ValueError, "must be a string"):
            rule.parse('{"into": 1}')


if __name__ == "__main__":
    unittest.main()
