/* Preloaded into an unmodified minetest 5.6 client (which holds its server in the same process): plays it in lock step.
 *
 * glXSwapBuffers              the gate: hands over the frame and the server's account, waits for what to do in the next frame
 * clock_gettime, gettimeofday stand still at the gate and advance by exactly what the next frame is to take
 * usleep, nanosleep, sem_...  don't wait for a clock that stands still
 * XPending, XNextEvent, ...   keys and mouse as they were asked for
 * glDrawElements, ...         draw nothing in a frame that nobody will see
 * time                        differs from process to process, because the game picks its port by it
 *
 * LOCKSTEP_SOCKET is the descriptor of a connected stream socket. Each frame goes `struct answer`, account, pixels (RGB,
 * bottom row first) one way and `struct request`, command the other way; keep both in step with client.py.
 * The server's mod (mod/init.lua) calls the functions named lockstep_*.
 */
#define _GNU_SOURCE
#include <GL/gl.h>
#include <GL/glx.h>
#include <X11/Xlib.h>
#include <X11/Xutil.h>
#include <X11/keysym.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000) /* in ns, as all spans of time here */
#define MILLISECOND INT64_C(1000000)
#define LONGEST_NAP MILLISECOND
#define LONG_WAIT (100 * MILLISECOND) /* a wait this long is for other threads' work and not for the clock: it is really waited */
#define LONGEST_GATE (10 * SECOND)
#define QUIET_LOOKS 2 /* in a row in which all other threads sleep */
#define LOOK_EVERY (MILLISECOND / 10)
#define LONGEST_SIDE 512
#define LONGEST_TEXT 65536

struct answer {
    uint32_t width, height, account_bytes, in_time; /* in_time: everything was done when the gate opened */
};
struct request {
    uint32_t keys; /* bit i: KEYS[i] is held */
    int32_t dx, dy; /* mouse, pixels */
    uint32_t span; /* microseconds that the next frame takes */
    uint32_t seen; /* whether it is drawn and answered with account and pixels */
    uint32_t command_bytes;
};

/* forward, back, jump, dig, place; keysyms, or mouse buttons */
static const KeySym KEYS[] = {XK_w, XK_s, XK_space, Button1, Button3};
#define IS_BUTTON(key) ((key) <= Button5)

#define THE_REAL(result, name, ...)                                                                                        \
    static result (*real)(__VA_ARGS__);                                                                                    \
    if (!real)                                                                                                             \
        real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static atomic_int in_lockstep, server_ready, seen = 1;
static atomic_llong ticked;                                    /* time that the server has got through */
static atomic_llong clocks[CLOCK_BOOTTIME + 1];                /* where they stand still */
static pthread_mutex_t texts = PTHREAD_MUTEX_INITIALIZER;      /* guards the next line */
static char account[LONGEST_TEXT], command[LONGEST_TEXT];
static uint32_t account_bytes, command_bytes;

/* ---- clocks ---- */

static int64_t real_time(clockid_t clock) {
    struct timespec now;
    syscall(SYS_clock_gettime, clock, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

static void really_sleep(int64_t span) {
    struct timespec rest = {span / SECOND, span % SECOND};
    syscall(SYS_nanosleep, &rest, NULL);
}

static int stands_still(clockid_t clock) {
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_BOOTTIME:
        return 1;
    default: /* a thread's or process's own time goes on */
        return 0;
    }
}

static void stop_clocks(void) {
    for (clockid_t clock = 0; clock <= CLOCK_BOOTTIME; clock++)
        if (stands_still(clock))
            clocks[clock] = real_time(clock);
}

static void advance_clocks(int64_t span) {
    for (clockid_t clock = 0; clock <= CLOCK_BOOTTIME; clock++)
        clocks[clock] += span;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!in_lockstep || !stands_still(clock))
        return (int)syscall(SYS_clock_gettime, clock, now);
    int64_t time = clocks[clock];
    *now = (struct timespec){time / SECOND, time % SECOND};
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    *now = (struct timeval){precise.tv_sec, precise.tv_nsec / 1000};
    return 0;
}

/* The game seeds what it draws its UDP port from with this. */
time_t time(time_t *answer) {
    time_t now = (time_t)(real_time(CLOCK_REALTIME) / SECOND) + (time_t)getpid() * 7919;
    if (answer)
        *answer = now;
    return now;
}

/* ---- waiting ---- */

static int nap(int64_t span) {
    really_sleep(in_lockstep && span > LONGEST_NAP ? LONGEST_NAP : span);
    return 0;
}

int nanosleep(const struct timespec *span, struct timespec *rest) {
    (void)rest;
    return nap(span->tv_sec * SECOND + span->tv_nsec);
}

int usleep(useconds_t microseconds) { return nap(microseconds * INT64_C(1000)); }

static int wait_for(sem_t *semaphore, int64_t span) {
    THE_REAL(int, sem_timedwait, sem_t *, const struct timespec *);
    int64_t until = real_time(CLOCK_REALTIME) + (span > 0 ? span : 0);
    struct timespec deadline = {until / SECOND, until % SECOND};
    return real(semaphore, &deadline);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict deadline) {
    int64_t until = deadline->tv_sec * SECOND + deadline->tv_nsec;
    if (!in_lockstep)
        return wait_for(semaphore, until - real_time(CLOCK_REALTIME));
    int64_t span = until - clocks[CLOCK_REALTIME];
    if (span <= LONG_WAIT)
        return wait_for(semaphore, span < LONGEST_NAP ? span : LONGEST_NAP);
    for (int64_t start = real_time(CLOCK_MONOTONIC);;) {
        int result = wait_for(semaphore, LONGEST_NAP);
        int over = clocks[CLOCK_REALTIME] >= until && real_time(CLOCK_MONOTONIC) - start > span;
        if (result == 0 || over || (errno != ETIMEDOUT && errno != EINTR))
            return result;
    }
}

/* ---- keys and mouse ---- */

#define QUEUE 64
static XEvent queue[QUEUE];
static unsigned queued, taken;
static Display *display;
static Window window;
static int pointer_x, pointer_y;
static uint32_t held;

static XEvent *new_event(int type) {
    XEvent *event = &queue[queued++ % QUEUE];
    *event = (XEvent){.xany = {.type = type, .display = display, .window = window}};
    return event;
}

static void press(KeySym key, int down) {
    Time now = (Time)(clocks[CLOCK_REALTIME] / MILLISECOND);
    if (IS_BUTTON(key)) {
        XButtonEvent *event = &new_event(down ? ButtonPress : ButtonRelease)->xbutton;
        event->button = (unsigned)key, event->time = now, event->x = pointer_x, event->y = pointer_y;
    } else {
        XKeyEvent *event = &new_event(down ? KeyPress : KeyRelease)->xkey;
        event->keycode = XKeysymToKeycode(display, key), event->time = now;
    }
}

static void hold(uint32_t keys) {
    for (unsigned i = 0; i < sizeof KEYS / sizeof *KEYS; i++)
        if ((keys ^ held) >> i & 1)
            press(KEYS[i], keys >> i & 1);
    held = keys;
}

int XPending(Display *of) {
    THE_REAL(int, XPending, Display *);
    return real(of) + (int)(queued - taken);
}

int XNextEvent(Display *of, XEvent *event) {
    THE_REAL(int, XNextEvent, Display *, XEvent *);
    if (taken != queued) {
        *event = queue[taken++ % QUEUE];
        return 0;
    }
    int result = real(of, event);
    if (in_lockstep && event->type == FocusOut)
        event->type = FocusIn; /* the game would open its menu */
    return result;
}

Bool XQueryPointer(Display *of, Window in, Window *root, Window *child, int *root_x, int *root_y, int *x, int *y, unsigned *mask) {
    THE_REAL(Bool, XQueryPointer, Display *, Window, Window *, Window *, int *, int *, int *, int *, unsigned *);
    if (!in_lockstep)
        return real(of, in, root, child, root_x, root_y, x, y, mask);
    *root_x = *x = pointer_x, *root_y = *y = pointer_y, *mask = 0;
    return True;
}

int XWarpPointer(Display *of, Window from, Window to, int from_x, int from_y, unsigned width, unsigned height, int x, int y) {
    THE_REAL(int, XWarpPointer, Display *, Window, Window, int, int, unsigned, unsigned, int, int);
    pointer_x = x, pointer_y = y;
    return in_lockstep ? 1 : real(of, from, to, from_x, from_y, width, height, x, y);
}

int XIWarpPointer(Display *of, int device, Window from, Window to, double from_x, double from_y, unsigned width, unsigned height,
                  double x, double y) {
    THE_REAL(int, XIWarpPointer, Display *, int, Window, Window, double, double, unsigned, unsigned, double, double);
    pointer_x = (int)x, pointer_y = (int)y;
    return in_lockstep ? 1 : real(of, device, from, to, from_x, from_y, width, height, x, y);
}

/* ---- drawing ---- */

void glDrawElements(GLenum mode, GLsizei count, GLenum type, const void *indices) {
    THE_REAL(void, glDrawElements, GLenum, GLsizei, GLenum, const void *);
    if (seen)
        real(mode, count, type, indices);
}

void glDrawArrays(GLenum mode, GLint first, GLsizei count) {
    THE_REAL(void, glDrawArrays, GLenum, GLint, GLsizei);
    if (seen)
        real(mode, first, count);
}

static const unsigned char *read_pixels(int *width, int *height) {
    static unsigned char pixels[LONGEST_SIDE * LONGEST_SIDE * 3];
    GLint viewport[4], alignment;
    glGetIntegerv(GL_VIEWPORT, viewport);
    *width = viewport[2], *height = viewport[3];
    if (*width > LONGEST_SIDE || *height > LONGEST_SIDE)
        _exit(71);
    glGetIntegerv(GL_PACK_ALIGNMENT, &alignment);
    glPixelStorei(GL_PACK_ALIGNMENT, 1);
    glReadBuffer(GL_BACK);
    glReadPixels(0, 0, *width, *height, GL_RGB, GL_UNSIGNED_BYTE, pixels);
    glPixelStorei(GL_PACK_ALIGNMENT, alignment);
    return pixels;
}

/* ---- what the server's mod calls, in every server step ---- */

void lockstep_ready(void) { server_ready = 1; }

int lockstep_is_seen(void) { return seen; }

int lockstep_command(char *text) {
    pthread_mutex_lock(&texts);
    int bytes = (int)command_bytes;
    memcpy(text, command, command_bytes);
    command_bytes = 0;
    pthread_mutex_unlock(&texts);
    return bytes;
}

void lockstep_ticked(double seconds, const char *text, int bytes) {
    pthread_mutex_lock(&texts);
    if (bytes > 0 && bytes <= LONGEST_TEXT) {
        memcpy(account, text, (size_t)bytes);
        account_bytes = (uint32_t)bytes;
    }
    pthread_mutex_unlock(&texts);
    ticked += (int64_t)(seconds * SECOND);
}

/* ---- the gate ---- */

static int others_run(void) {
    static int files[256], count, looks;
    if (looks++ % 2000 == 0) { /* which threads there are */
        while (count)
            close(files[--count]);
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *task; tasks && (task = readdir(tasks)) && count < 256;) {
            char path[300];
            if (atoi(task->d_name) == 0 || atoi(task->d_name) == gettid())
                continue;
            snprintf(path, sizeof path, "/proc/self/task/%s/stat", task->d_name);
            if ((files[count] = open(path, O_RDONLY | O_CLOEXEC)) >= 0)
                count++;
        }
        if (tasks)
            closedir(tasks);
    }
    for (int i = 0; i < count; i++) {
        char text[128];
        ssize_t bytes = pread(files[i], text, sizeof text - 1, 0);
        text[bytes > 0 ? bytes : 0] = 0;
        const char *name_end = strrchr(text, ')');
        if (name_end && name_end[2] != 'S')
            return 1;
    }
    return 0;
}

/* Until the server has got through the last frame's time and nothing is being generated, sent or meshed any more. */
static int wait_for_the_others(int64_t until_ticked) {
    int64_t start = real_time(CLOCK_MONOTONIC);
    for (int quiet = 0; quiet < QUIET_LOOKS;) {
        quiet = ticked >= until_ticked && !others_run() ? quiet + 1 : 0;
        if (real_time(CLOCK_MONOTONIC) - start > LONGEST_GATE)
            return 0;
        if (quiet < QUIET_LOOKS)
            really_sleep(LOOK_EVERY);
    }
    return 1;
}

/* Whoever has closed the socket ends this process, and lifeline.c does where nobody is left to. */
static void abandoned(void) {
    for (;;)
        pause();
}

static void send_all(int socket, const void *from, size_t bytes) {
    for (ssize_t sent; bytes; from = (const char *)from + sent, bytes -= (size_t)sent)
        if ((sent = send(socket, from, bytes, MSG_NOSIGNAL)) <= 0)
            abandoned();
}

static void receive_all(int socket, void *to, size_t bytes) {
    for (ssize_t got; bytes; to = (char *)to + got, bytes -= (size_t)got)
        if ((got = recv(socket, to, bytes, 0)) <= 0)
            abandoned();
}

static void begin_lockstep(Display *of, GLXDrawable drawable) {
    display = of, window = (Window)drawable;
    stop_clocks();
    in_lockstep = 1;
    new_event(FocusIn);
}

static void answer(int socket, int in_time) {
    int width = 0, height = 0;
    const unsigned char *pixels = seen ? read_pixels(&width, &height) : NULL;
    pthread_mutex_lock(&texts);
    struct answer head = {(uint32_t)width, (uint32_t)height, seen ? account_bytes : 0, (uint32_t)in_time};
    send_all(socket, &head, sizeof head);
    send_all(socket, account, head.account_bytes);
    pthread_mutex_unlock(&texts);
    send_all(socket, pixels, (size_t)width * (size_t)height * 3);
}

static int64_t obey(int socket) {
    static char text[LONGEST_TEXT];
    struct request next;
    receive_all(socket, &next, sizeof next);
    if (next.command_bytes > LONGEST_TEXT)
        _exit(72);
    receive_all(socket, text, next.command_bytes);
    pthread_mutex_lock(&texts);
    memcpy(command, text, next.command_bytes);
    command_bytes = next.command_bytes;
    pthread_mutex_unlock(&texts);
    seen = next.seen != 0;
    hold(next.keys);
    pointer_x += next.dx, pointer_y += next.dy;
    return next.span * INT64_C(1000);
}

void glXSwapBuffers(Display *of, GLXDrawable drawable) {
    THE_REAL(void, glXSwapBuffers, Display *, GLXDrawable);
    static int64_t until_ticked;
    static int socket = -1;
    if (!server_ready) { /* still loading */
        real(of, drawable);
        return;
    }
    if (!in_lockstep) {
        const char *number = getenv("LOCKSTEP_SOCKET");
        socket = number ? atoi(number) : -1;
        begin_lockstep(of, drawable);
    }
    int in_time = wait_for_the_others(until_ticked);
    answer(socket, in_time);
    int64_t span = obey(socket);
    until_ticked = ticked + span / 2; /* half, because what the server counts differs by roundings, which must not add up */
    advance_clocks(span);
}
