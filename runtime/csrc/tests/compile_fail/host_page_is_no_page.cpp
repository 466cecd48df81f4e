// A page of the host is none of the device.
// expect gcc: cannot convert 'tsrun::HostPageId' to 'tsrun::PageId' in initialization
// expect clang: cannot initialize a member subobject of type 'tsrun::PageId' with an lvalue of type 'tsrun::HostPageId'
#include "host_tier.hpp"

using namespace tsrun;

Transfer::Pair legal(PageId device, HostPageId host) { return Transfer::Pair{device, host}; }

#ifdef ILLEGAL
Transfer::Pair illegal(PageId device, HostPageId host) { return Transfer::Pair{host, device}; }
#endif
