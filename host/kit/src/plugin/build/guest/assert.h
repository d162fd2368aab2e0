// Stands in for the standard header in a plugin, which has no output: an assertion that fails
// is logged with its place, and ends the call. The host makes it the failure of the call.
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) \
    ((condition) ? (void)0 : presence_assertion_failed(#condition, __FILE__, __LINE__))
#endif

#ifndef PRESENCE_ASSERT_H
#define PRESENCE_ASSERT_H
#if !defined(__cplusplus) && (!defined(__STDC_VERSION__) || __STDC_VERSION__ < 202311L)
#define static_assert _Static_assert
#endif
_Noreturn void presence_assertion_failed(const char *condition, const char *file, int line);
#endif
